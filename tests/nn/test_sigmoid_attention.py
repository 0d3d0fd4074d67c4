"""Sigmoid attention and chunked attention against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from attention_layers import check_caches, check_documents, layer_config, mixer_of
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.ops.attention import attention
from lit_gpt.ops.chunked import chunked_attention

HEADS, GROUPS, DIM = 4, 2, 6


def inputs(q_len: int, k_len: int, width: int = DIM) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, q_len, HEADS, DIM), (2, k_len, GROUPS, DIM), (2, k_len, GROUPS, width)]
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def sigmoid(scores: Tensor, queries: slice, keys: slice) -> Tensor:
    return torch.sigmoid(scores - 0.4)


def naive(q: Tensor, k: Tensor, v: Tensor, window: int | None, doc_ids: Tensor | None) -> Tensor:
    """One query, key and head at a time."""
    y = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    past = k.shape[1] - q.shape[1]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for j in range(past + i + 1):
                if window is not None and past + i - j >= window:
                    continue
                if doc_ids is not None and doc_ids[b, past + i] != doc_ids[b, j]:
                    continue
                for h in range(HEADS):
                    g = h * GROUPS // HEADS
                    score = 0.3 * float(q[b, i, h] @ k[b, j, g]) - 0.4
                    y[b, i, h] += v[b, j, g] / (1 + math.exp(-score))
    return y


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("q_len", "k_len"), [(11, 11), (1, 11), (5, 11)])
def test_chunks_are_the_definition(q_len, k_len, window, packed):
    q, k, v = inputs(q_len, k_len, width=3)
    doc_ids = torch.stack([torch.arange(k_len) // 4, (torch.arange(k_len) > 6).long()]) if packed else None
    expected = naive(q, k, v, window, doc_ids)
    for chunk in (2, 100):
        y = chunked_attention(q, k, v, sigmoid, scale=0.3, window=window, doc_ids=doc_ids, chunk=chunk)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("window", [None, 3])
def test_chunks_with_softmax_are_softmax_attention(window):
    q, k, v = inputs(9, 9)
    y = chunked_attention(q, k, v, lambda s, *_: s.softmax(-1), scale=0.3, window=window, chunk=4)
    torch.testing.assert_close(y, attention(q, k, v, scale=0.3, window=window, backend="plain"))


def test_gradients_through_recomputed_chunks():
    q, k, v = (x[:1, :, -2:, :2].clone().requires_grad_() for x in inputs(5, 5))
    run = lambda q, k, v: chunked_attention(q, k, v, sigmoid, scale=0.3, window=4, chunk=2)  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v))


def test_scores_are_never_held_for_all_queries():
    seen = []

    def weigh(scores: Tensor, queries: slice, keys: slice) -> Tensor:
        seen.append(scores.shape[-2:])
        return torch.sigmoid(scores)

    q, k, v = (x.requires_grad_() for x in inputs(10, 10))
    chunked_attention(q, k, v, weigh, scale=1.0, window=3, chunk=4).sum().backward()
    assert len(seen) == 6, "three chunks, each computed again in the backward pass"
    assert all(rows <= 4 and columns <= 4 + 3 - 1 for rows, columns in seen)


@pytest.mark.parametrize("length_bias", [False, True])
def test_the_layer(length_bias):
    config = layer_config("sigmoid_attention", mixer_options={"sigmoid_attention": {"length_bias": length_bias}})
    layer = mixer_of(config, 1)
    x = torch.randn(2, 7, config.n_embd, dtype=torch.float64)
    y, _ = layer(x, Context())
    q, k, v = (m(x).unflatten(-1, (-1, config.head_dim)) for m in (layer.q, layer.k, layer.v))
    k, v = (t.repeat_interleave(config.n_head // config.n_kv_head, 2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * config.head_dim**-0.5
    bias = -math.log(config.block_size) if length_bias else 0.0
    heads = torch.einsum("bhqk,bkhd->bqhd", torch.sigmoid(scores + bias).tril(), v)
    normed = heads / (heads.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * layer.head_norm.weight
    torch.testing.assert_close(y, layer.out(normed.flatten(2)))


@pytest.mark.parametrize("window", [None, 3])
def test_caches_and_documents(window):
    config = layer_config("sigmoid_attention", window=window, qk_norm=True, attn_conv=True)
    check_caches(config)
    check_documents(config)


def test_options_that_cannot_act_are_refused():
    with pytest.raises(UserError, match="no softmax"):
        mixer_of(layer_config("sigmoid_attention", attn_sink=True), 1)
    with pytest.raises(UserError, match="Did you mean 'head_norm'"):
        mixer_of(layer_config("sigmoid_attention", mixer_options={"sigmoid_attention": {"headnorm": True}}), 1)
