"""Mamba's scan against the recurrence written out token by token in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import selective_scan as ops
from lit_gpt.ops.selective_scan import RESET, selective_scan

B, T, C, N = 2, 29, 3, 4


def inputs(length: int = T, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, length, C), (B, length, C), (C, N), (B, length, N), (B, length, N), (C,), (C,)]
    tensors = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    tensors[2] = -torch.rand(C, N, generator=g, dtype=torch.float64) * 4 - 0.01
    return [t.to(dtype) for t in tensors]


def documents(length: int = T) -> Tensor:
    t = torch.arange(length)
    return torch.stack([(t > 4).long() + (t > 17).long() + (t > 18).long(), 7 + (t > 11).long()])


def naive(x, dt, A, B, C, D, dt_bias, doc_ids=None, state=None) -> tuple[Tensor, Tensor]:
    """The definition, one number at a time."""
    y = torch.zeros_like(x)
    last = torch.zeros(*x.shape[::2], A.shape[1], dtype=x.dtype)
    for b in range(x.shape[0]):
        for c in range(x.shape[2]):
            for n in range(A.shape[1]):
                h = 0.0 if state is None else state[b, c, n]
                for t in range(x.shape[1]):
                    if doc_ids is not None and t > 0 and doc_ids[b, t] != doc_ids[b, t - 1]:
                        h = 0.0
                    d = math.log1p(math.exp(dt[b, t, c] + dt_bias[c]))
                    h = math.exp(d * A[c, n]) * h + d * B[b, t, n] * x[b, t, c]
                    y[b, t, c] += C[b, t, n] * h
                last[b, c, n] = h
    return y + D * x, last


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("backend", "length"), [("plain", T), ("plain", 1), ("plain", 16), ("steps", 7)])
def test_against_the_recurrence(backend, length, packed, with_state):
    tensors, ids = inputs(length), documents(length) if packed else None
    state = torch.randn(B, C, N, dtype=torch.float64) if with_state else None
    y, last = selective_scan(*tensors, doc_ids=ids, state=state, backend=backend)
    expected, expected_last = naive(*tensors, doc_ids=ids, state=state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("backend", ["plain", "steps"])
def test_gradients(backend):
    tensors = [x.requires_grad_() for x in (*inputs(6), torch.randn(B, C, N, dtype=torch.float64))]
    ids = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3]])

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(*tensors[:-1], doc_ids=ids, state=tensors[-1], backend=backend)

    assert torch.autograd.gradcheck(run, tensors)


def per_token(tensors: list[Tensor], start: int, end: int) -> list[Tensor]:
    return [t[:, start:end] if i in (0, 1, 3, 4) else t for i, t in enumerate(tensors)]


def test_pieces_make_the_whole():
    tensors, ids = inputs(), documents()
    whole, last = selective_scan(*tensors, doc_ids=ids)
    state, pieces = None, []
    for start, end in [(0, 13), (13, 17), (17, 18), (18, 29)]:
        # The boundary after token 17 of the first row lies between two pieces: carry it as the caller must.
        carried = state if state is None else state * (ids[:, start] == ids[:, start - 1])[:, None, None]
        y, state = selective_scan(*per_token(tensors, start, end), doc_ids=ids[:, start:end], state=carried)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_strong_decay_neither_overflows_nor_loses_precision():
    tensors = inputs(200, dtype=torch.float32)
    tensors[2] = tensors[2] * 100
    y, _ = selective_scan(*tensors)
    torch.testing.assert_close(y.double(), naive(*(t.double() for t in tensors))[0], rtol=1e-4, atol=1e-5)


def reset_scan(x, dt, A, B, C, D, dt_bias, ids) -> tuple[Tensor, Tensor]:
    """What the kernel row does, with plain torch in the kernel's place."""
    reset_x, reset_dt = ops.reset_at_documents(x, dt, dt_bias, ids)
    y, state = selective_scan(reset_x, reset_dt, A, B, C, torch.zeros_like(D), dt_bias, backend="plain")
    return y + D * x, state


def test_the_reset_is_a_document_boundary():
    tensors, ids = [t.requires_grad_() for t in inputs()], documents()
    results = []
    for run in (lambda: reset_scan(*tensors, ids), lambda: selective_scan(*tensors, doc_ids=ids, backend="plain")):
        y, state = run()
        results.append([y, state, *torch.autograd.grad((y * torch.linspace(-1, 1, T)[:, None]).sum(), tensors)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_the_reset_in_bfloat16():
    """It rounds each document's first x once more, and the kernel's d x B stays exact in fp32."""
    x, dt, _, b, _, _, dt_bias = inputs()
    half, ids = [t.bfloat16() for t in (x, dt)], documents()
    reset_x, reset_dt = ops.reset_at_documents(*half, dt_bias.float(), ids)
    starts = ops.document_starts(ids)
    step = F.softplus(reset_dt[starts].float() + dt_bias.float())
    assert torch.equal(step, torch.full_like(step, RESET))
    expected = F.softplus(half[1].double() + dt_bias.float())[starts] * half[0].double()[starts]
    torch.testing.assert_close((step * reset_x[starts].float()).double(), expected, rtol=2**-8, atol=0)
    u, b = reset_x[starts], b.bfloat16()[starts]
    product = (step * u.float())[..., None] * b.float()[:, None]
    assert torch.equal(product.double(), (step.double() * u.double())[..., None] * b.double()[:, None])
    assert torch.exp(torch.tensor(-1e-7) * RESET) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_what_the_kernel_is_given(packed, monkeypatch):
    """mamba_ssm's demands on types and layout, checked by a stand-in that knows no documents."""

    def selective_scan_fn(
        u, delta, A, B, C, D, *, delta_bias, delta_softplus, return_last_state
    ) -> tuple[Tensor, Tensor]:
        assert u.dtype == delta.dtype == B.dtype == C.dtype == torch.bfloat16
        assert A.dtype == delta_bias.dtype == torch.float32
        assert delta_softplus and return_last_state and (D is None) == packed
        per_time = [t.transpose(1, 2) for t in (u, delta, B, C)]
        D = torch.zeros(A.shape[0]) if D is None else D
        y, state = selective_scan(*per_time[:2], A, *per_time[2:], D, delta_bias, backend="plain")
        return y.transpose(1, 2), state

    monkeypatch.setattr(ops, "optional", lambda module: SimpleNamespace(selective_scan_fn=selective_scan_fn))
    tensors = [t.float() if i in (2, 5, 6) else t.bfloat16() for i, t in enumerate(inputs())]
    ids = documents() if packed else None
    expected, expected_state = selective_scan(*tensors, doc_ids=ids, backend="plain")
    y, state = ops.BACKENDS["mamba_ssm"].run(ops.Inputs(*tensors, ids, None))
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, expected_state, rtol=1e-2, atol=1e-2)


def test_choice_of_backend(monkeypatch):
    monkeypatch.setattr(ops, "missing", lambda module: "")
    own = ["it cannot be compiled"]
    monkeypatch.setattr(ops.selective_scan_cuda, "refuses", lambda dtype, states: own[0])
    request = ops.Request("cuda", torch.bfloat16, 4096, 16, False, False)

    def chosen(**changes) -> str:
        return ops.choose("selective scan", ops.BACKENDS, request._replace(**changes))

    assert chosen() == chosen(documents=True) == "mamba_ssm"
    assert chosen(length=1, state=True) == "steps"
    assert chosen(device="cpu") == "plain"
    with pytest.warns(UserWarning, match="zero state"):
        assert chosen(state=True) == "plain"
    with pytest.warns(UserWarning, match="bfloat16 only"):
        assert chosen(documents=True, dtype=torch.float32) == "plain"
    own[0] = ""
    assert chosen() == chosen(documents=True, dtype=torch.float32) == chosen(state=True) == "cuda"
    assert chosen(length=1, state=True) == "steps"
    assert chosen(device="cpu") == "plain"
