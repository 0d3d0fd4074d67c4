"""Causal convolution against torch's own, and against sums written out with documents and states."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import conv as ops
from lit_gpt.ops.backends import choose
from lit_gpt.ops.conv import causal_conv

B, T, C, K = 2, 11, 5, 4


def inputs(length: int = T, width: int = K, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, length, C), (C, 1, width), (C,)]
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def documents() -> Tensor:
    return torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3], [4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5]])


def naive(x: Tensor, weight: Tensor, doc_ids: Tensor | None) -> Tensor:
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for lag in range(min(weight.shape[2], t + 1)):
                if doc_ids is None or doc_ids[b, t] == doc_ids[b, t - lag]:
                    y[b, t] += weight[:, 0, -1 - lag] * x[b, t - lag]
    return y


@pytest.mark.parametrize("length", [1, 2, T])
@pytest.mark.parametrize("width", [2, 4, 7])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_against_torch(width, length, activation):
    x, weight, bias = inputs(length, width)
    y, _ = causal_conv(x, weight, bias, activation=activation)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=width - 1, groups=C)[..., :length].transpose(1, 2)
    torch.testing.assert_close(y, F.silu(expected) if activation else expected)


def test_documents_do_not_mix():
    x, weight, bias = inputs()
    y, state = causal_conv(x, weight, bias, doc_ids=documents())
    torch.testing.assert_close(y, naive(x, weight, documents()) + bias)
    expected = torch.stack([torch.stack([0 * x[0, 0], 0 * x[0, 0], x[0, 10]]), x[1, 8:]]).transpose(1, 2)
    torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("cuts", [(1, 2, 3, 11), (5, 11), (10, 11)])
def test_pieces_make_the_whole(cuts):
    x, weight, bias = inputs()
    whole, last = causal_conv(x, weight, bias, activation="silu")
    state, pieces, start = None, [], 0
    for end in cuts:
        y, state = causal_conv(x[:, start:end], weight, bias, activation="silu", state_BCK=state)
        pieces.append(y)
        start = end
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_a_state_belongs_to_the_first_document():
    x, weight, _ = inputs()
    ids = documents()
    _, state = causal_conv(x[:, :2], weight, doc_ids=ids[:, :2])
    rest, _ = causal_conv(x[:, 2:], weight, doc_ids=ids[:, 2:], state_BCK=state)
    torch.testing.assert_close(rest, naive(x, weight, ids)[:, 2:])


def test_gradients():
    tensors = [x.requires_grad_() for x in inputs(6)]
    ids = documents()[:, :6]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return causal_conv(x, weight, bias, activation="silu", doc_ids=ids)

    assert torch.autograd.gradcheck(run, tensors)


def test_half_precision_sums_in_fp32():
    x, weight, bias = (t.float() for t in inputs())
    y, _ = causal_conv(x.bfloat16(), weight, bias)
    expected, _ = causal_conv(x.bfloat16().float(), weight, bias)
    assert torch.equal(y, expected.bfloat16())


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_it_keeps_one_tensor_of_its_input_in_its_dtype(packed):
    """Which the estimate of memory counts on: in fp32 it was 8% of what a step of `gdny` took."""
    h, up, weight = torch.randn(2, 64, 16), torch.randn(96, 16, requires_grad=True), torch.randn(96, 1, K)
    ids = torch.arange(64).expand(2, -1) // 20 if packed else None
    kept: list[Tensor] = []

    def convolved(h: Tensor, up: Tensor) -> Tensor:
        x = F.linear(h.bfloat16(), up.bfloat16())
        return causal_conv(x, weight, activation="silu", doc_ids=ids, backend="plain")[0].square()

    run = torch.compile(convolved, backend="aot_eager_decomp_partition", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(h, up)
    tokens = [t for t in kept if t.shape[:2] in ((2, 64), (2, 64 + K - 1), (128, 96)) and t.shape[-1] == 96]
    assert [(t.dtype, t.numel()) for t in tokens] == [(torch.bfloat16, 2 * (64 + K - 1) * 96)]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_what_the_kernel_is_given(packed, with_state, monkeypatch):
    """causal_conv1d's demands on layout, checked by a stand-in."""

    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None, activation: str) -> Tensor:
        assert x.stride(1) == 1 and x.stride(0) % 8 == x.stride(2) % 8 == 0
        assert weight.dtype == bias.dtype == torch.float32
        assert seq_idx is None or (seq_idx.dtype == torch.int32 and seq_idx.is_contiguous() and seq_idx.min() >= 0)
        y, _ = causal_conv(x.transpose(1, 2), weight[:, None], bias, activation=activation, doc_ids=seq_idx)
        return y.transpose(1, 2)

    monkeypatch.setattr(ops, "optional", lambda module: SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn))
    x, weight, bias, state = (
        torch.randn(B, T, 27)[..., 3:11],
        torch.randn(8, 1, K),
        torch.randn(8),
        torch.randn(B, 8, 3),
    )
    ids, state = documents() if packed else None, state if with_state else None
    expected, _ = causal_conv(x, weight, bias, activation="silu", doc_ids=ids, state_BCK=state, backend="plain")
    (y,) = ops.BACKENDS["causal_conv1d"].run(ops.Inputs(x, weight[:, 0], bias, "silu", ids, state), [8])
    torch.testing.assert_close(y, expected)


def test_choice_of_backend(monkeypatch):
    monkeypatch.setattr(ops, "missing", lambda module: "")
    monkeypatch.setattr(ops.conv_triton, "gpu_refuses", lambda module: "")
    request = ops.Request("cuda", torch.bfloat16, 64, 4, True)

    def chosen(**changes) -> str:
        return choose("causal convolution", ops.BACKENDS, request._replace(**changes))

    assert chosen() == chosen(channels=20) == "triton"
    assert chosen(device="cpu") == "plain"
    assert chosen(documents=False, along_time=True) == "causal_conv1d"
    monkeypatch.setattr(ops.conv_triton, "gpu_refuses", lambda module: "not on this GPU")
    assert chosen() == "causal_conv1d"
    assert chosen(channels=20, documents=False) == "fla"
    with pytest.warns(UserWarning, match="multiple of 8 channels"):
        assert chosen(channels=20) == "plain"


@pytest.mark.parametrize("installed", [True, False])
def test_what_lies_along_time_is_left_to_the_kernel_that_reads_it(installed, monkeypatch, recwarn):
    """Even where ours would come first: whoever asks then lays x out so, and no kernel must copy it. Without that
    kernel ours convolves, so nothing warns of plain torch.
    """
    monkeypatch.setattr(ops, "missing", lambda module: "" if installed else "not installed")
    monkeypatch.setattr(ops.conv_triton, "gpu_refuses", lambda module: "")
    x: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    ids, state = torch.zeros(2, 3), torch.zeros(2, 64, 3)
    assert ops.reads_along_time(x, 64, 4, None, None) is installed
    assert not ops.reads_along_time(x, 64, 4, ids, None) and not ops.reads_along_time(x, 64, 4, None, state)
    assert ops.reads_along_time(x, 64, 4, None, None, "causal_conv1d")
    assert not ops.reads_along_time(x, 64, 4, None, None, "triton")
    assert not recwarn
