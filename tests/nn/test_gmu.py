"""Gated Memory Units against their formula, over each kind of memory."""

from __future__ import annotations

import pytest
import torch
from attention_layers import check_caches, check_documents, layer_config, mixer_of, model_of, tokens
from torch.nn import functional as F

from lit_gpt.config.model import LayerSpec
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import MemoryForm, SharedState, attention


def config_of(lender: LayerSpec, **options):
    cross = LayerSpec("cross_attention", shares=0)
    return layer_config("gmu", layers=(lender, LayerSpec("gmu", shares=0), cross), **options)


LENDERS = {"heads": LayerSpec(memory="mixer"), "ffn": LayerSpec(memory="ffn")}


@pytest.mark.parametrize("bias", [False, True])
def test_the_formula(bias):
    config = config_of(LENDERS["heads"], mlp_bias=bias)
    unit = mixer_of(config, 1)
    x, memory = (torch.randn(2, 5, 24, dtype=torch.float64) for _ in range(2))
    y, nothing = unit(x, Context(), SharedState(memory=memory))
    inner = x @ unit.gate.weight.T + (unit.gate.bias if bias else 0)
    expected = (memory * inner * torch.sigmoid(inner)) @ unit.out.weight.T + (unit.out.bias if bias else 0)
    torch.testing.assert_close(y, expected)
    assert nothing is None and unit.norm is None


def test_the_normed_formula(monkeypatch):
    """As for Mamba-2 and gated delta rules: the norm is over the whole width."""
    monkeypatch.setattr(attention, "memory", lambda config, layer: MemoryForm(40, normed=True))
    unit = mixer_of(config_of(LENDERS["heads"]), 1)
    x, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 5, 40, dtype=torch.float64)
    gated = memory * F.silu(x @ unit.gate.weight.T)
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * unit.norm.weight
    torch.testing.assert_close(unit(x, Context(), SharedState(memory=memory))[0], normed @ unit.out.weight.T)


def test_gradients():
    unit = mixer_of(config_of(LENDERS["heads"]), 1)
    x, memory = (torch.randn(1, 3, 24, dtype=torch.float64, requires_grad=True) for _ in range(2))
    given = tuple(unit.parameters())  # trained in place, so they are leaves here too
    assert torch.autograd.gradcheck(lambda x, m, *_: unit(x, Context(), SharedState(memory=m))[0], (x, memory, *given))


@pytest.mark.parametrize("lender", LENDERS)
def test_width_and_flops_follow_the_lender(lender):
    unit = mixer_of(config_of(LENDERS[lender]), 1)
    width = {"heads": 4 * 6, "ffn": 20}[lender]
    assert unit.gate.weight.shape == (width, 24) and unit.out.weight.shape == (24, width)
    assert unit.flops(100) == 2 * 2 * 24 * width


@torch.no_grad()
def test_attention_shares_its_heads_after_the_gate_before_the_norm():
    config = config_of(LENDERS["heads"], attn_gate=True, attn_norm=True)
    layer = mixer_of(config, 0)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    y, shared = layer(x, Context())
    torch.testing.assert_close(layer.out(layer.norm(shared.memory, shared.memory.dtype)), y)
    layer.gate.weight.zero_()
    halved, layer.gate = layer(x, Context())[1].memory, None
    torch.testing.assert_close(2 * halved, layer(x, Context())[1].memory)


@pytest.mark.parametrize("options", [{}, {"attn_conv": True, "attn_gate": True}])
@pytest.mark.parametrize("lender", LENDERS)
def test_caches_and_documents(lender, options):
    config = config_of(LENDERS[lender], **options)
    check_caches(config)
    check_documents(config)


def test_a_feed_forward_network_shares_its_up_half():
    """It reaches the output by way of the unit when the network's own output does not."""
    model = model_of(config_of(LENDERS["ffn"]))
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
    model(tokens()).logits.sum().backward()
    gate, up = model.blocks[0].ffn.up.weight.grad.chunk(2)
    assert gate.abs().sum() == 0 and up.abs().sum() > 0
