"""Queries, keys and values of one product that are rotated together: the numbers, where it happens, and its kernels."""

from __future__ import annotations

import re

import pytest
import torch
from attention_layers import layer_config, mixer_of

from lit_gpt.architectures import build
from lit_gpt.config.model import LayerSpec
from lit_gpt.nn import rotary
from lit_gpt.nn.block import Block, Stream
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers.attention import Attention
from lit_gpt.scaling.base import Multipliers

ROWS, T = 2, 17  # more tokens than nn.linear.FEW_ROWS
TOKENS = torch.arange(ROWS * T).view(ROWS, T) % 31
POSITIONS = {"plain": torch.arange(T), "packed": torch.stack([torch.arange(T) % 5, torch.arange(T) % 11])}
TOGETHER = {
    "plain": layer_config("attention"),
    "window": layer_config("attention", window=3),
    "pairs": layer_config("differential_attention"),
    "sink": layer_config("attention", attn_sink=True),
    "gate": layer_config("attention", attn_gate=True, attn_norm=True),
    "fox": layer_config("fox"),
    "shared": layer_config("attention", layers=(LayerSpec("attention"), LayerSpec("cross_attention", shares=0))),
    "value table": layer_config("attention", layers=(LayerSpec("attention", value_embedding=True),)),
}
APART = {
    "no positions": layer_config("attention", position="none"),
    "part of a head": layer_config("attention", rotary_fraction=0.5),
    "norm": layer_config("attention", qk_norm=True),
    "convolution": layer_config("attention", attn_conv=True),
    "bias": layer_config("attention", attn_bias=True),
}


def results(config, positions: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    """The first layer's output and gradients."""
    mixer, x = mixer_of(config, 0).to(x.dtype), x.clone().requires_grad_()
    rope = rotary.tables(config, positions) if config.position == "rope" else None
    y, _ = mixer(x, Context(rope=rope, tokens=TOKENS))
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("config", [*TOGETHER.values(), *APART.values()], ids=[*TOGETHER, *APART])
def test_the_same_as_one_after_the_other(config, positions, monkeypatch):
    x, taken = torch.randn(ROWS, T, config.n_embd, dtype=torch.float64), []
    turned = Attention._turned
    monkeypatch.setattr(Attention, "_turned", lambda *given: taken.append(True) or turned(*given))
    together = results(config, positions, x)
    assert bool(taken) == (config in TOGETHER.values())
    monkeypatch.setattr(Attention, "_only_turns", lambda *given: False)
    for ours, expected in zip(together, results(config, positions, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_turn_as_heads_do_to_the_bit(dtype, positions):
    x = torch.randn(ROWS, T, 3, 64).to(dtype).requires_grad_()
    tables = rotary.tables(build("transformer", 4, aspect_ratio=64), positions)
    y, expected = rotary.rotate_halves(x.unflatten(-1, (2, -1)), *tables).flatten(-2), rotary.rotate(x, *tables)
    assert y.dtype == dtype and torch.equal(y, expected)
    weight = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(z, x, weight)[0] for z in (y, expected)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_one_kernel_between_the_backward_passes_of_attention_and_the_product():
    """In a compiled block, and the gradients are those of the uncompiled one."""
    from torch._inductor.utils import fresh_cache, run_and_get_code

    config = build("transformer", 4, block_size=256)
    with torch.device("cuda"):
        block = Block(config, 0, Multipliers(), torch.bfloat16)
        for p in block.parameters():
            torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.02)
        context = Context(rope=rotary.tables(config, torch.arange(256)), backend="sdpa")
        x = torch.randn(4, 256, config.n_embd, requires_grad=True)

    def run(forward) -> list[torch.Tensor]:
        y = forward(Stream(x), context)[0].x
        return [y, *torch.autograd.grad(y, [x, *block.parameters()], torch.ones_like(y))]

    expected = run(block)
    with fresh_cache():
        made, codes = run_and_get_code(run, torch.compile(block.forward))
    for ours, plain in zip(made, expected, strict=True):
        assert (ours - plain).norm() < 0.02 * plain.norm()  # bf16 keeps 8 bits
    assert [launches(code) for code in sorted(codes, key=is_backward)] == [3, 1]  # forward makes q, k and v


def is_backward(code: str) -> bool:
    return "attention_backward" in code


def launches(code: str) -> int:
    """Kernels of the compiler between attention and the product on its other side, in what the compiler made."""
    between = r"attention_backward\.default\(.*?\.mm\(" if is_backward(code) else r"\.mm\(.*?attention\.default\("
    found = re.search(between, code, re.DOTALL)
    assert found is not None
    return found.group().count(".run(")
