"""Which implementation of an operation runs: a table per operation, one way to choose.

An operation keeps a dict of name -> Backend, fastest first. The last row is "plain": plain torch, which does every
request, defines what the operation means, and is what the kernels are tested against. "auto" is the first proven
row that does not refuse the request. To add a kernel, add a row.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_gradtrackingtensor  # type: ignore[import]
from torch.autograd import forward_ad

from lit_gpt.errors import UserError, did_you_mean

# Optional library -> what installs it.
PACKAGES = {
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "fla": "flash-linear-attention",
    "flash_attn": "flash-attn",
    "pytorch_optimizer": "pytorch-optimizer",
    "flash_attn.cute": "flash-attn-4",
    "quack": "quack-kernels",
    "transformer_engine": "transformer-engine[pytorch]",
    "flash_attn_interface": "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper",
}


class Memory(NamedTuple):
    """Bytes per token that a kernel takes beside its arguments, its result and their gradients.

    kept: until its backward pass. made: at once within it.
    """

    kept: float = 0
    made: float = 0


class Backend(NamedTuple):
    """kernel: the implementation. refuses(request): the reason why it does not do a request, or "". slow: where a
    CUDA request is left to it, that is said. memory(*arguments of the kernel): what the estimate of a model's memory
    cannot see.
    """

    kernel: Callable[..., Any]
    refuses: Callable[[Any], str]
    slow: bool = False
    memory: Callable[..., Memory] = lambda *_: Memory()

    def run(self, *arguments: Any) -> Any:
        """The operation; what `observed` was given stands between, where there is such a thing."""
        return self.kernel(*arguments) if _observer is None else _observer(self, self, arguments)


Observer = Callable[[Backend, Backend, tuple[Any, ...]], Any]
_observer: Observer | None = None


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Within it every operation is observer(row, row on a GPU, its arguments), which gives what row.kernel would.

    For what asks which operations a model has, such as the estimate of its memory; not for training. The GPU is this
    machine's, or where it has none, one with all libraries.
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def current_name(backend: str) -> str:
    """The name of a backend today: earlier versions, and config.yaml files that they wrote, say "reference"."""
    return "plain" if backend == "reference" else backend


@functools.cache
def _load(module: str) -> ModuleType | str:
    """The module, or why there is none."""
    top = module.split(".")[0]
    package = PACKAGES.get(module, PACKAGES.get(top, top))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return f"{module} is not installed (pip install {package})"
        return f"{module} needs {error.name}, which is not installed"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # built for another torch, CUDA or Triton
        return f"{module} cannot be imported: {error}"


def optional(module: str) -> ModuleType:
    """An optional library's module. Call it where `missing(module)` is ""."""
    found = _load(module)
    assert isinstance(found, ModuleType), found
    return found


@torch.compiler.assume_constant_result
def missing(module: str) -> str:
    """Why a module of an optional library cannot be used, or "". A compiler must not trace the import.

    None is missing from a GPU elsewhere, see `observed`.
    """
    if _observer is not None and not torch.cuda.is_available():
        return ""
    found = _load(module)
    return found if isinstance(found, str) else ""


def run(operation: str, table: Mapping[str, Backend], request: Any, wanted: str, *arguments: Any) -> Any:
    """The operation by the row that does a request. Raises UserError as `choose`."""
    row = table[choose(operation, table, request, wanted)]
    if _observer is None:
        return row.kernel(*arguments)
    on_gpu = table[_first(table, request._replace(device="cuda"))] if wanted == "auto" else row
    return _observer(row, on_gpu, arguments)


PLAIN = "backend='plain' for the operation, GPT(config, kernels='plain') for a model"


def refuse_transforms(what: str, *tensors: Tensor | None, plain: str = PLAIN) -> None:
    """Raises UserError where derivatives go through operations that have none of the kind, in forward mode or by
    torch.func; plain: what has them.

    Of a custom operation torch takes forward-mode ones for zeros. Within a compiler tensors do not show theirs.
    """
    given, compiling = [t for t in tensors if t is not None], torch.compiler.is_compiling()
    asked, ways = "", "torch.func.jvp and torch.autograd.forward_ad"
    if forward_ad._current_level >= 0 and (
        compiling or any(forward_ad.unpack_dual(t).tangent is not None for t in given)
    ):
        asked = "forward-mode derivatives"
    elif not compiling and any(is_gradtrackingtensor(t) for t in given):
        asked, ways = "derivatives by torch.func", "torch.func.grad and its relatives"
    if asked:
        raise UserError(f"{what} have no {asked}, as {ways} ask for. Take plain torch: {plain}.")


def choose(operation: str, table: Mapping[str, Backend], request: Any, wanted: str = "auto") -> str:
    """Name of the row that does a request; request.device is a device type.

    Warns once per operation when a CUDA request is left to "plain" or to another slow row.
    Raises UserError when the row asked for is unknown or refuses.
    """
    wanted = current_name(wanted)
    if wanted == "auto":
        name = _first(table, request)
        if (name == "plain" or table[name].slow) and request.device == "cuda":
            reasons = {n: b.refuses(request) for n, b in table.items()}
            _warn(operation, name, "; ".join(f"{n}: {reason}" for n, reason in reasons.items() if reason))
        return name
    if wanted not in table:
        names = ("auto", *table)
        raise UserError(
            f"Unknown {operation} backend {wanted!r}.{did_you_mean(wanted, names)} Use one of {', '.join(names)}."
        )
    if reason := table[wanted].refuses(request):
        raise UserError(f"The {operation} backend {wanted!r} cannot be used here: {reason}. Use 'auto'.")
    return wanted


def _first(table: Mapping[str, Backend], request: Any) -> str:
    return next(name for name, one in table.items() if not one.refuses(request))


@torch.compiler.assume_constant_result
def _warn(operation: str, name: str, reasons: str) -> None:
    _warn_once(operation, name, reasons)


@functools.cache
def _warn_once(operation: str, name: str, reasons: str) -> None:
    why = f" ({reasons})" if reasons else ""
    warnings.warn(f"{operation} uses the slow backend {name!r}, plain torch{why}", stacklevel=4)


def explain_table(table: Mapping[str, Backend], request: Any) -> list[tuple[str, bool, str]]:
    """(row, usable for a request, reason or what it is), for `inspect env`."""
    reasons = {name: backend.refuses(request) for name, backend in table.items()}
    return [(n, not r, r or (table[n].kernel.__doc__ or "").split("\n")[0]) for n, r in reasons.items()]
