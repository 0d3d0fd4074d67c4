"""Forgetting attention against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from attention_layers import check_caches, check_documents, layer_config, mixer_of
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.ops.attention import attention
from lit_gpt.ops.forgetting import forgetting_attention

HEADS, GROUPS, DIM = 4, 2, 6


def inputs(q_len: int, k_len: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, q_len, HEADS, DIM), (2, k_len, GROUPS, DIM), (2, k_len, GROUPS, DIM), (2, k_len, HEADS)]
    q, k, v, f = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return q, k, v, F.logsigmoid(f)


def naive(q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, window: int | None, doc_ids: Tensor | None) -> Tensor:
    """The gates are multiplied out, key by key, backwards from each query."""
    y = torch.zeros_like(q)
    past = k.shape[1] - q.shape[1]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for h in range(HEADS):
                g, kept, total = h * GROUPS // HEADS, 1.0, 0.0
                for j in range(past + i, -1, -1):
                    near = window is None or past + i - j < window
                    if near and (doc_ids is None or doc_ids[b, past + i] == doc_ids[b, j]):
                        weight = kept * math.exp(0.3 * float(q[b, i, h] @ k[b, j, g]))
                        y[b, i, h] += weight * v[b, j, g]
                        total += weight
                    kept *= math.exp(float(log_forget[b, j, h]))
                y[b, i, h] /= total
    return y


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("q_len", "k_len"), [(9, 9), (1, 9), (4, 9)])
def test_it_is_the_definition(q_len, k_len, window, packed):
    tensors = inputs(q_len, k_len)
    doc_ids = torch.stack([torch.arange(k_len) // 4, (torch.arange(k_len) > 6).long()]) if packed else None
    y = forgetting_attention(*tensors, scale=0.3, window=window, doc_ids=doc_ids)
    torch.testing.assert_close(y, naive(*tensors, window, doc_ids))


def test_nothing_forgotten_is_softmax_attention():
    q, k, v, f = inputs(7, 7)
    y = forgetting_attention(q, k, v, torch.zeros_like(f), scale=0.3)
    torch.testing.assert_close(y, attention(q, k, v, scale=0.3, backend="plain"))


def test_gradients():
    tensors = [x[:1, :3].clone().requires_grad_() for x in inputs(3, 3)]
    assert torch.autograd.gradcheck(lambda *t: forgetting_attention(*t, scale=0.3, window=2), tensors)


@torch.no_grad()
def test_the_layer():
    config = layer_config("fox")
    layer = mixer_of(config, 1)
    x = torch.randn(2, 7, config.n_embd, dtype=torch.float64)
    q, k, v = (m(x).unflatten(-1, (-1, config.head_dim)) for m in (layer.q, layer.k, layer.v))
    gates = torch.sigmoid(x @ layer.forget.weight.T + layer.forget.bias)
    expected = naive(q * config.head_dim**-0.5 / 0.3, k, v, gates.log(), None, None)
    torch.testing.assert_close(layer(x, Context())[0], layer.out(expected.flatten(2)))
    assert layer.flops(5) == mixer_of(layer_config("attention"), 1).flops(5) + 2 * 24 * 4


@pytest.mark.parametrize("options", [{}, {"position": "none", "qk_norm": True, "attn_conv": True, "attn_gate": True}])
@pytest.mark.parametrize("window", [None, 3])
def test_caches_and_documents(window, options):
    config = layer_config("fox", window=window, **options)
    check_caches(config)
    check_documents(config)


def test_sinks_are_refused():
    with pytest.raises(UserError, match="no sinks"):
        mixer_of(layer_config("fox", attn_sink=True), 1)
