"""Delta rules against their definition in float64 and against transformers' Qwen3-Next and Kimi Linear."""

from __future__ import annotations

import itertools

import pytest
import recurrences as naive
import torch
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from lit_gpt.ops import delta_rule as ops
from lit_gpt.ops.delta_rule import delta_rule
from lit_gpt.ops.linear_recurrence import Call, Request

FORMS = ["none", "head", "channel"]
SCALE = 0.3


def inputs(form: str, length: int = naive.LENGTH, dtype: torch.dtype = torch.float64) -> list:
    """q, k, v, beta in [0, 2], log decay; keys of norm 1."""
    q, k, v = naive.qkv(length, dtype)
    beta = 2 * naive.normal(naive.BATCH, length, naive.HEADS, seed=7, dtype=dtype).sigmoid()
    return [q, naive.normalized(k), v, beta, naive.log_decay(form, length, dtype=dtype)]


def definition(q, k, v, beta, g=None, state=None):
    return naive.recurrence(q, k, v, g, SCALE, beta, state)


def start() -> torch.Tensor:
    return naive.normal(naive.BATCH, naive.HEADS, naive.KEY, naive.VALUE, seed=5)


@pytest.mark.parametrize("length", [1, 7, 64, 80])
@pytest.mark.parametrize("form", FORMS)
def test_definition(form, length):
    given = inputs(form, length)
    result = delta_rule(*given, scale=SCALE, state=start())
    torch.testing.assert_close(result, definition(*given, state=start()))


def test_normalization_and_defaults():
    q, k, v, beta, _ = inputs("none", 9)
    o, state = delta_rule(q, 3 * k, v, beta, normalize=True)
    expected, _ = naive.recurrence(naive.normalized(q), naive.normalized(3 * k), v, None, naive.KEY**-0.5, beta)
    torch.testing.assert_close(o, expected)
    assert state is None


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_equal_separate_ones(form):
    """Values, last states and every gradient, with other boundaries in each row."""
    given = inputs(form)
    leaves = [x.requires_grad_() for x in given if x is not None]
    zeros = torch.zeros_like(start())
    packed = delta_rule(*given, scale=SCALE, doc_ids=naive.ids(), state=zeros)
    separate = naive.separately(definition, *leaves)
    torch.testing.assert_close(packed, separate)
    weights = naive.normal(*packed[0].shape, seed=3), naive.normal(*zeros.shape, seed=4)
    gradients = [torch.autograd.grad([(a * w).sum() for a, w in zip(r, weights)], leaves) for r in (packed, separate)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 50, 79])
def test_the_state_carries_over(form, cut):
    given = inputs(form)
    whole, final = delta_rule(*given, state=start())
    state, outputs = start(), []
    for part in (slice(0, cut), slice(cut, None)):
        o, state = delta_rule(*(x if x is None else x[:, part] for x in given), state=state)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    ids = torch.tensor([[0, 0, 1, 1, 1], [3, 3, 3, 3, 4]])
    leaves = [x.requires_grad_() for x in [start(), *inputs(form, 5)] if x is not None]
    assert torch.autograd.gradcheck(
        lambda s, *x: delta_rule(*x, normalize=True, doc_ids=ids, state=s), leaves, fast_mode=True
    )


@pytest.mark.parametrize("form", ["head", "channel"])
def test_strong_decays_stay_finite(form):
    """A chunk's decays multiply to far below what fp32 holds; no quotient of them is ever taken."""
    given = inputs(form, dtype=torch.float32)
    given = [x.requires_grad_() for x in (*given[:4], 30 * given[4])]
    o, _ = delta_rule(*given, scale=SCALE)
    expected, _ = definition(*(x.detach().double() for x in given))
    torch.testing.assert_close(o.double(), expected, rtol=1e-4, atol=1e-5)
    o.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in given)


def test_fp32_is_accurate_with_negative_eigenvalues():
    """Nearly equal keys and beta near 2 make the triangular system as bad as it gets."""
    q, k, v, _, _ = inputs("none", dtype=torch.float32)
    k = naive.normalized(k[:, :1] + 0.1 * k)
    beta = torch.full_like(k[..., 0], 1.99)
    o, _ = delta_rule(q, k, v, beta, scale=SCALE)
    expected, _ = definition(*(x.double() for x in (q, k, v, beta)))
    torch.testing.assert_close(o.double(), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_inputs():
    q, k, v, beta, g = inputs("head", dtype=torch.bfloat16)
    o, _ = delta_rule(q, k, v, beta.float(), g.float())
    exact, _ = delta_rule(*(x.double() for x in (q, k, v, beta, g)))
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o, exact.bfloat16())


@pytest.mark.parametrize("theirs", [qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule])
def test_against_qwen3_next(theirs):
    q, k, v, beta, g = inputs("head", dtype=torch.float32)
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "initial_state": start().float()}
    expected = theirs(q, k, v, g=g, beta=beta, **options)
    result = delta_rule(q, k, v, beta, g, normalize=True, state=start().float())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("theirs", [kimi.chunk_kimi_delta_attention, kimi.recurrent_kimi_delta_attention])
def test_against_kimi_linear(theirs):
    q, k, v, beta, g = inputs("channel", dtype=torch.float32)
    v = v[..., : naive.KEY]
    state = start().float()[..., : naive.KEY]
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "initial_state": state}
    expected = theirs(q, k, v, g=g, beta=beta, **options)
    result = delta_rule(q, k, v, beta, g, normalize=True, state=state)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("row", "form"), [*itertools.product(["fla_steps", "fla"], FORMS), ("fla_kda", "head")])
def test_how_the_kernels_are_called(form, row, packed, monkeypatch):
    """On kernels written out in Python: which argument a decay is, and documents as one long row."""
    names = (*ops.CHUNKED.values(), *ops.STEPS.values())
    documents = (naive.ids(), naive.offsets()) if packed else (None, None)
    q, k, v, beta, g = inputs(form)
    call = Call(q, k, v, beta, g, SCALE, True, *documents, start())
    naive.check_call(ops, row, names, call, monkeypatch)


def test_which_kernel_is_chosen(monkeypatch):
    """On a GPU that our own kernels are not for."""
    monkeypatch.setattr(ops.delta_rule_triton, "gpu_refuses", lambda module: "not on this GPU")
    for decay in FORMS:
        assert naive.chosen(ops, Request(decay=decay), monkeypatch) == "fla"
        assert naive.chosen(ops, Request(decay=decay, gradients=False, length=1), monkeypatch) == "fla_steps"
        assert naive.chosen(ops, Request(decay=decay, gradients=False), monkeypatch) == "fla"
        assert naive.chosen(ops, Request(decay=decay, device="cpu"), monkeypatch) == "plain"
        assert naive.chosen(ops, Request(decay=decay, dtype=torch.float32), monkeypatch) == "plain"
        assert naive.chosen(ops, Request(decay=decay, key_dim=320), monkeypatch) == "plain"
    assert naive.chosen(ops, Request(decay="head"), monkeypatch, "miscompiled") == "fla_kda"
    assert naive.chosen(ops, Request(decay="head", gradients=False), monkeypatch, "miscompiled") == "fla"
    assert naive.chosen(ops, Request(decay="channel"), monkeypatch, "miscompiled") == "fla"


def test_where_our_own_kernels_are_chosen(monkeypatch):
    monkeypatch.setattr(ops.delta_rule_triton, "gpu_refuses", lambda module: "")
    for decay in ("none", "head"):
        assert naive.chosen(ops, Request(decay=decay, key_dim=256, value_dim=512), monkeypatch) == "triton"
        assert naive.chosen(ops, Request(decay=decay, gradients=False), monkeypatch) == "triton"
        assert naive.chosen(ops, Request(decay=decay, gradients=False, length=1), monkeypatch) == "fla_steps"
        assert naive.chosen(ops, Request(decay=decay, key_dim=152), monkeypatch) == "fla"
        assert naive.chosen(ops, Request(decay=decay, dtype=torch.float32, key_dim=64), monkeypatch) == "triton"
        assert naive.chosen(ops, Request(decay=decay, device="cpu"), monkeypatch) == "plain"
    assert naive.chosen(ops, Request(decay="channel"), monkeypatch) == "fla"
