"""Triton's interpreter in place of a GPU, for kernels that are a module of their own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch


def _why_not() -> str:
    if torch.cuda.is_available():
        return "a GPU runs the kernels themselves"
    if importlib.util.find_spec("triton") is None:
        return "Triton's interpreter needs triton (pip install triton)"
    return "triton is imported already, and would not interpret its own functions" if "triton" in sys.modules else ""


@contextmanager
def _interpreting() -> Iterator[None]:
    """What is imported meanwhile is interpreted."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    yield
    del os.environ["TRITON_INTERPRET"]
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


def _import_triton() -> None:
    with _interpreting():
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        """Triton 3.6 makes bounds of loops by int() of an array of one number, which numpy 2.4 no longer takes."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
    builder = interpreter.InterpreterBuilder
    multiply = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        """Triton 3.6 keeps numbers in bfloat16 as their bits, and multiplies these."""
        return multiply(self, _widened(interpreter, a), _widened(interpreter, b), *others)

    builder.create_dot = create_dot
    convert = interpreter._convert_float

    def convert_float(numbers: Any, source: Any, target: Any, mode: Any) -> Any:
        """It cuts digits off, where a GPU rounds to the nearest number."""
        if (source, target) != (interpreter.tl.float32, interpreter.tl.bfloat16):
            return convert(numbers, source, target, mode)
        rounded = torch.from_numpy(numbers.copy()).bfloat16()
        return rounded.view(torch.int16).numpy().view("uint16")

    interpreter._convert_float = convert_float


def _widened(interpreter: Any, handle: Any) -> Any:
    """An operand in float32 where it is in bfloat16."""
    language = interpreter.tl
    if handle.dtype.scalar != language.bfloat16:
        return handle
    bits = handle.data.astype("uint32") << 16
    return interpreter.TensorHandle(bits.view("float32"), language.float32)


WHY_NOT = _why_not()
if not WHY_NOT:
    _import_triton()  # now, before anything else does

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
# Of a fixture that calls `interpret` where it is "cpu".
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)),
    pytest.param("cuda", marks=ON_GPU),
]


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a test kernels are launched by the interpreter, on a CPU's tensors."""
    from lit_gpt.ops import triton_calls  # not above: what it imports imports Triton, and would not be interpreted

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_calls, "optional", interpreted)


@cache
def interpreted(name: str) -> ModuleType:
    """A copy of a module of kernels, which run on a CPU's tensors."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _interpreting():
        spec.loader.exec_module(module)
    return module
