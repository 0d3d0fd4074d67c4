"""Mamba and Gated Memory Units hand the kernels what they read, and copy nothing between layouts.

With stand-ins for the kernels that know their demands on layout; on a GPU the same calls reach the libraries.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_stand_ins import Copies, install
from torch import Tensor, nn

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import lies_along_time
from lit_gpt.nn.mixers import SharedState, build_mixer
from lit_gpt.nn.recurrent import QueriesKeysValues
from lit_gpt.ops import conv, conv_triton
from lit_gpt.ops.backends import Backend
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

B, T, WIDTH = 3, 88, 32  # 3 * 88 tokens: no weight's size is a multiple of it
INNER, RANK, STATES = 2 * WIDTH, 8, 8
MUP = Multipliers()
PLANS = {name: RolePlan(lr=1e-2, weight_decay=0.1, init=Init("fan_in_uniform")) for name in ROLES}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    install(monkeypatch)


@pytest.fixture(params=["libraries", "ours"])
def inside(request, monkeypatch) -> list[int]:
    """What our own convolution copies, numbers per token. ours: as on a Hopper GPU, where it comes before the library;
    here it computes nothing.
    """
    copied, beside = [], conv_triton.side_by_side

    def side_by_side(x: Tensor) -> Tensor:
        if (y := beside(x)) is not x:
            copied.append(x.shape[2])
        return y

    monkeypatch.setattr(conv_triton, "side_by_side", side_by_side)
    monkeypatch.setattr(conv_triton, "launch", lambda *_, **__: None)
    monkeypatch.setattr(conv_triton, "processors", lambda device: 132)
    monkeypatch.setattr(conv_triton, "gpu_refuses", lambda module: "" if request.param == "ours" else "no GPU")
    refuses = conv._triton_refuses
    row = Backend(conv._triton, lambda request: refuses(request._replace(device="cuda")))
    monkeypatch.setitem(conv.BACKENDS, "triton", row)
    return copied


SIZES = {"n_embd": WIDTH, "n_head": 2, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48}


class Layers(nn.Module):
    """A Mamba layer, and a unit that reads what it shares."""

    def __init__(self, **options):
        super().__init__()
        layers = (LayerSpec("mamba", memory="mixer"), LayerSpec("gmu", shares=0))
        options = {"mamba": {"d_state": STATES, "dt_rank": RANK, **options}}
        config = ModelConfig(family="tiny", depth=2, layers=layers, mixer_options=options, **SIZES)
        self.mamba, self.unit = (build_mixer(config, i, MUP) for i in range(2))
        init_parameters(self, PLANS, seed=3)

    def forward(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        y, shared = self.mamba(x_BTD, context)
        return y + self.unit(x_BTD, context, SharedState(memory=shared.memory))[0], shared.memory


def context(packed: bool, kernels: str = "auto", length: int = T) -> Context:
    starts = torch.tensor([[length // 2], [length // 4], [1]])
    return Context(doc_ids=(torch.arange(length) >= starts).long() if packed else None, kernels=kernels)


def inputs(length: int = T) -> Tensor:
    return torch.randn(B, length, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def copied(module: nn.Module, run: Callable[[Tensor], Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers that forward and backward of run(x) in bf16 move and do not compute, per token."""
    x, written = inputs().bfloat16(), []
    with Copies(B * T) as copies:
        y = run(x)
        written.append(dict(copies.written))
        copies.written.clear()
        torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))
    return written[0], dict(copies.written)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_copied(packed, joint, inside):
    layers = Layers(joint=joint).bfloat16()
    forward, backward = copied(layers, lambda x: layers(x, context(packed))[0])
    assert lies_along_time(layers(inputs().bfloat16(), context(packed))[1])
    # The gradients of the time steps' inputs, B and C are joined, which are few.
    assert backward.pop("cat") == RANK + 2 * STATES
    if not packed:
        assert not forward and not backward and not inside
        return
    # Only the convolution that has channels last knows documents: a copy behind it. The casts are to and from fp32, for
    # what stands in for a document's start, and are compiled into one kernel.
    assert forward.pop("clone") == backward.pop("clone", 0) + sum(inside) == INNER
    assert forward.keys() == backward.keys() == {"_to_copy"}


@pytest.mark.parametrize("options", [{}, {"joint": True}, {"inner_norms": True}])
@pytest.mark.parametrize(("packed", "length"), [(False, T), (True, T), (False, 21)])
def test_the_same_numbers_as_in_plain_torch(options, packed, length):
    # The kernel's gradients are right with documents in bf16 only.
    dtype, bound = (torch.bfloat16, 0.03) if packed else (torch.float32, 1e-5)
    layers, results = Layers(**options).to(dtype), []
    for kernels in ("auto", "plain"):
        x = inputs(length).to(dtype)
        y, memory = layers(x, context(packed, kernels, length))
        assert lies_along_time(memory) == (kernels == "auto")
        weight = torch.linspace(-1, 1, WIDTH, dtype=dtype)
        results.append([y, memory, *torch.autograd.grad((y * weight).sum(), [x, *layers.parameters()])])
    for ours, plain in zip(*results):
        assert (ours - plain).norm() < bound * plain.norm()


def mamba2(**options) -> nn.Module:
    """Two groups of heads."""
    options = {"mamba2": {"d_state": 8, "head_dim": 16, "head_multiple": 2, "groups": 2, **options}}
    layers = (LayerSpec("mamba2"),)
    module = build_mixer(ModelConfig(family="tiny", depth=1, layers=layers, mixer_options=options, **SIZES), 0, MUP)
    init_parameters(module, PLANS, seed=3)
    return module


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_mamba_2_copies_nothing(packed, joint, inside):
    """Its casts are those of the gate and the norm, which are in fp32, and the documents'."""
    module = mamba2(joint=joint).bfloat16()
    forward, backward = copied(module, lambda x: module(x, context(packed))[0])
    assert forward.keys() == backward.keys() == {"_to_copy"} and not inside


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("build", [mamba2, lambda: QueriesKeysValues(WIDTH, 2, 8, 16, conv=4)])
def test_pieces_of_the_convolution(build, packed):
    """The same numbers as in plain torch, from kernels that run once for each piece; outputs that fla need not copy."""
    module, results = build(), []
    init_parameters(module, PLANS, seed=3)
    for kernels in ("auto", "plain"):
        x = inputs()
        given = x, context(packed, kernels)
        outputs = module(*given, None) if isinstance(module, QueriesKeysValues) else [module(*given)[0]]
        assert all(y.is_contiguous() for y in outputs) or kernels == "plain"
        weights = [torch.linspace(-1, 1, y.numel()).view_as(y) for y in outputs]
        loss = sum((y * w).sum() for y, w in zip(outputs, weights))
        results.append([*outputs, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_prompt_and_then_tokens():
    """The kernels take the prompt, and the cached form goes on."""
    mamba, x = Layers().mamba, inputs()
    whole, _ = mamba(x, context(False, "plain"))
    cache = mamba.new_cache(B, T, torch.device("cpu"), torch.float32)
    pieces = [mamba(part, context(False), None, cache)[0] for part in x.split([T - 2, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
