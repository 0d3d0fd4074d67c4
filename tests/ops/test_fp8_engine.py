"""Recipes of TransformerEngine, with a stand-in that has what its documentation says of its interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.nn.linear import Linear, joint, together
from lit_gpt.ops import fp8_engine
from lit_gpt.ops.fp8 import ENGINE, RECIPES
from lit_gpt.parallel.fp8 import fp8_note, use_fp8
from lit_gpt.parallel.recompute import recompute_in_backward
from lit_gpt.preflight.backend_checks import check_fp8

OURS = [name for name, recipe in RECIPES.items() if recipe.package == ENGINE]
CLASSES = ("Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling", "NVFP4BlockScaling")


class Engine:
    """transformer_engine.pytorch, without the rounding. calls: the recipe of each product."""

    def __init__(self, able: tuple[bool, str] = (True, ""), old: bool = False):
        self.calls: list[str] = []
        self.active: Any = None
        for name in fp8_engine.ABLE.values():
            setattr(self, name, lambda return_reason=False: able if return_reason else able[0])
        setattr(self, "fp8_autocast" if old else "autocast", self._old if old else self._new)

    @contextmanager
    def _new(self, enabled: bool = True, calibrating: bool = False, recipe: Any = None) -> Iterator[None]:
        before, self.active = self.active, recipe if enabled else None
        yield
        self.active = before

    def _old(self, enabled: bool = True, calibrating: bool = False, fp8_recipe: Any = None) -> Any:
        return self._new(enabled, recipe=fp8_recipe)

    @property
    def Linear(self) -> Callable[..., nn.Module]:
        engine = self

        class EngineLinear(nn.Linear):
            def __init__(self, in_features: int, out_features: int, bias: bool = True, **kwargs: Any):
                super().__init__(in_features, out_features, bias, kwargs["device"], kwargs["params_dtype"])

            def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor:  # type: ignore[override]
                assert engine.active is not None and inp.is_contiguous() and self.weight.device == inp.device
                assert inp.dtype == self.weight.dtype, "Data types for parameters must match outside of autocast"
                engine.calls.append(type(engine.active).__name__)
                return super().forward(inp)

        return EngineLinear


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], Engine]:
    def put(engine: Engine) -> Engine:
        modules = {ENGINE: engine, "transformer_engine.common.recipe": SimpleNamespace(**dict.fromkeys(CLASSES))}
        for name in CLASSES:
            setattr(modules["transformer_engine.common.recipe"], name, type(name, (), {}))
        monkeypatch.setattr(fp8_engine, "missing", lambda module: "")
        monkeypatch.setattr(fp8_engine, "optional", modules.__getitem__)
        return engine

    return put


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = Linear(256, 256), Linear(256, 128), Linear(128, 256, bias=True)
        self.qk, self.odd = together(self.q, self.k), Linear(256, 264)

    def forward(self, x: Tensor) -> Tensor:
        q, k = joint(x, *self.qk)
        return q + self.out(k) + self.odd(x).mean()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block()])
        for p in self.parameters():
            nn.init.normal_(p, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("old", [False, True])
def test_its_products_are_by_the_recipe_and_of_our_parameters(name: str, old: bool, install: Any) -> None:
    engine, model, plain, x = install(Engine(old=old)), Model(), Model(), torch.randn(2, 128, 256)
    use_fp8(model, name, kept=True)
    assert model.state_dict().keys() == plain.state_dict().keys()
    got, wanted = gradients(model, x), gradients(plain, x)
    assert engine.calls == [RECIPES[name].library] and engine.active is None  # q and k; `out` has a side of 128
    assert got.keys() == wanted.keys() and all(p.dtype == torch.float32 for p in got.values())
    for key, grad in got.items():
        torch.testing.assert_close(grad, wanted[key])
    engine.calls.clear()
    assert torch.equal(model.eval()(x), plain.eval()(x)) and not engine.calls


def test_what_backward_computes_again_is_by_the_recipe(install: Any) -> None:
    engine, model = install(Engine()), Model()
    use_fp8(model, "te_current", kept=False)
    recompute_in_backward(model.blocks[0], "full")
    gradients(model, torch.randn(2, 8, 256))
    assert engine.calls == ["Float8CurrentScaling"] * 2


def test_weights_come_in_the_dtype_of_the_activations(install: Any) -> None:
    engine, model = install(Engine()), Model()
    use_fp8(model, "te_block", kept=True)
    got = gradients(model, torch.randn(2, 8, 256).bfloat16())
    assert engine.calls and all(p.dtype == torch.float32 for p in got.values())


def test_a_compiled_block_leaves_it_out(install: Any) -> None:
    torch._dynamo.reset()
    engine, model, x = install(Engine()), Model(), torch.randn(2, 8, 256)
    use_fp8(model, "te_mxfp8", kept=True)
    wanted = model(x)
    torch.testing.assert_close(torch.compile(model.blocks[0], backend="eager")(x), wanted)
    assert engine.calls == ["MXFP8BlockScaling"] * 2


def test_what_it_cannot_do_here_is_said(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"te_current .*: transformer_engine.pytorch is not installed \(pip install"):
        check_fp8("te_current", gpu, 128)
    engine = install(Engine(able=(False, "Device compute capability 10.0 or higher required for NVFP4 execution.")))
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        check_fp8("te_current", torch.device("cpu"), 128)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"10.0 or higher required for NVFP4 execution. Use .* and not --fp4\.$"):
        check_fp8("te_nvfp4", gpu, 128)
    del engine.is_mxfp8_available
    with pytest.raises(UserError, match=r"has no is_mxfp8_available; install 2.9 or later. Use"):
        check_fp8("te_mxfp8", gpu, 128)
    with pytest.raises(UserError, match="needs a multiple of 128"):
        check_fp8("te_block", gpu, 64)


def test_the_note_says_how_many_bits() -> None:
    assert "train in 4 bits" in fp8_note(Model(), "te_nvfp4") and "train in 8 bits" in fp8_note(Model(), "te_block")
