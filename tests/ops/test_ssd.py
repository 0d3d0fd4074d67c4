"""Mamba-2's scan against the recurrence written out token by token in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import ssd as ops
from lit_gpt.ops.backends import choose
from lit_gpt.ops.ssd import CHUNK, ssd

B, H, P, N, G = 2, 4, 3, 5, 2
T = 2 * CHUNK + 9


def inputs(length: int = T, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, length, H, P), (B, length, H), (H,), (B, length, G, N), (B, length, G, N), (H,), (H,)]
    tensors = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    tensors[2] = -torch.rand(H, generator=g, dtype=torch.float64) * 2 - 0.01
    return [t.to(dtype) for t in tensors]


def documents(length: int = T) -> Tensor:
    """Boundaries inside chunks, at a chunk's edge, and a document over several chunks. In int32, as models have them:
    the last chunk was padded with document 0, and the state after it was lost.
    """
    t = torch.arange(length)
    return torch.stack([(t > 4).int() + (t >= CHUNK).int() + (t > T - 3).int(), 7 + (t > 5).int()])


def naive(x, dt, A, B, C, D, dt_bias, doc_ids=None, state=None) -> tuple[Tensor, Tensor]:
    """The definition, one row, head and token at a time."""
    y, last = torch.zeros_like(x), []
    for b in range(x.shape[0]):
        for h in range(x.shape[2]):
            g = h // (x.shape[2] // B.shape[2])
            S = torch.zeros(x.shape[3], B.shape[3], dtype=x.dtype) if state is None else state[b, h]
            for t in range(x.shape[1]):
                if doc_ids is not None and t > 0 and doc_ids[b, t] != doc_ids[b, t - 1]:
                    S = 0 * S
                d = F.softplus(dt[b, t, h] + dt_bias[h])
                S = (d * A[h]).exp() * S + d * torch.outer(x[b, t, h], B[b, t, g])
                y[b, t, h] = S @ C[b, t, g] + D[h] * x[b, t, h]
            last.append(S)
    return y, torch.stack(last).unflatten(0, (x.shape[0], -1))


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("backend", "length"), [("plain", T), ("plain", 1), ("plain", CHUNK), ("steps", 7)])
def test_against_the_recurrence(backend, length, packed, with_state):
    tensors, ids = inputs(length), documents(length) if packed else None
    state = torch.randn(B, H, P, N, dtype=torch.float64) if with_state else None
    y, last = ssd(*tensors, doc_ids=ids, state=state, backend=backend)
    expected, expected_last = naive(*tensors, doc_ids=ids, state=state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("backend", ["plain", "steps"])
def test_gradients(backend, monkeypatch):
    monkeypatch.setattr(ops, "CHUNK", 3)
    tensors = [x.requires_grad_() for x in (*inputs(7), torch.randn(B, H, P, N, dtype=torch.float64))]
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 3]])

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(*tensors[:-1], doc_ids=ids, state=tensors[-1], backend=backend)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def per_token(tensors: list[Tensor], start: int, end: int) -> list[Tensor]:
    return [t[:, start:end] if i in (0, 1, 3, 4) else t for i, t in enumerate(tensors)]


def test_pieces_make_the_whole():
    tensors = inputs()
    whole, last = ssd(*tensors)
    state, pieces = None, []
    for start, end in [(0, 70), (70, 74), (74, 75), (75, T)]:
        y, state = ssd(*per_token(tensors, start, end), state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_strong_decay_neither_overflows_nor_loses_precision():
    tensors = inputs(dtype=torch.float32)
    tensors[2] = tensors[2] * 100
    y, _ = ssd(*tensors)
    torch.testing.assert_close(y.double(), naive(*(t.double() for t in tensors))[0], rtol=1e-3, atol=1e-4)


def test_what_the_kernel_is_given(monkeypatch):
    """mamba_ssm counts documents from 0, to which it takes the first state to belong."""

    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk, *, D, dt_bias, initial_states, seq_idx, dt_softplus, return_final_states
    ) -> tuple[Tensor, Tensor]:
        assert x.dtype == B.dtype == C.dtype and A.dtype == D.dtype == dt_bias.dtype == torch.float32
        assert dt_softplus and return_final_states and chunk == 256
        assert seq_idx.dtype == torch.int32 and torch.equal(seq_idx[:, 0], torch.zeros(len(seq_idx), dtype=torch.int32))
        return ssd(x, dt, A, B, C, D, dt_bias, doc_ids=seq_idx.long(), state=initial_states, backend="plain")

    fake = SimpleNamespace(mamba_chunk_scan_combined=mamba_chunk_scan_combined)
    monkeypatch.setattr(ops, "optional", lambda module: fake)
    tensors, state = inputs(dtype=torch.float32), torch.randn(B, H, P, N)
    expected = ssd(*tensors, doc_ids=documents(), state=state, backend="plain")
    for ours, theirs in zip(ops.BACKENDS["mamba_ssm"].run(ops.Inputs(*tensors, documents(), state)), expected):
        torch.testing.assert_close(ours, theirs)


def test_choice_of_backend(monkeypatch):
    monkeypatch.setattr(ops, "missing", lambda module: "")
    monkeypatch.setattr(ops.ssd_triton, "refuses", lambda dtype, width, states: "" if states == 128 else "not these")
    request = ops.Request("cuda", torch.bfloat16, 4096, 64, 128)
    assert choose("ssd", ops.BACKENDS, request) == "triton"
    assert choose("ssd", ops.BACKENDS, request._replace(states=100)) == "mamba_ssm"
    assert choose("ssd", ops.BACKENDS, request._replace(length=1)) == "steps"
    assert choose("ssd", ops.BACKENDS, request._replace(device="cpu")) == "plain"
