"""The chunked loss against the plain one, and both against torch's cross-entropy in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import hessian
from torch.nn import functional as F

from lit_gpt.errors import UserError
from lit_gpt.ops.loss import IGNORE, chunk_loss, eager_chunk_loss, even_chunk, linear_cross_entropy

N, D, V, PADDED = 23, 8, 13, 16


def inputs(dtype: torch.dtype):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64)
    weight = torch.randn(PADDED, D, generator=g, dtype=torch.float64)
    targets = torch.randint(0, V, (N,), generator=g)
    targets[[0, 5, 22]] = IGNORE
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def run(backend: str, dtype: torch.dtype, smoothing: float, **options):
    hidden, weight, targets = inputs(dtype)
    loss = linear_cross_entropy(
        hidden, weight, targets, vocab_size=V, label_smoothing=smoothing, backend=backend, **options
    )
    (loss * 0.25).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("inner", [chunk_loss, eager_chunk_loss])
@pytest.mark.parametrize("cap", [0.0, 2.0, 1e6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 8, 23, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunked_equals_plain(dtype, chunk, smoothing, cap, inner):
    """A cap that is far above all logits changes nothing; in fp32 it once rounded them to sixteenths."""
    expected = run("plain", dtype, smoothing, cap=cap)
    for ours, theirs in zip(run("chunked", dtype, smoothing, chunk=chunk, cap=cap, inner=inner), expected):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_is_torchs_cross_entropy_over_the_true_vocabulary(smoothing):
    hidden, weight, targets = inputs(torch.float64)
    logits = hidden @ weight[:V].T
    expected = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            loss = linear_cross_entropy(hidden, weight, targets, vocab_size=V, label_smoothing=smoothing, chunk=7)
        torch.testing.assert_close(loss, expected)


def test_padded_rows_get_no_gradient():
    assert not run("chunked", torch.float32, 0.1)[2][V:].any()


def test_everything_ignored_is_zero():
    hidden, weight, targets = inputs(torch.float32)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


def test_bf16_activations_keep_fp32_loss_and_weight_gradient():
    hidden, weight, targets = inputs(torch.float32)
    expected = linear_cross_entropy(hidden, weight, targets, backend="plain")
    half = hidden.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(half, weight, targets, chunk=10)
    loss.backward()
    assert (loss.dtype, half.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("inner", [chunk_loss, eager_chunk_loss])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_rounded_logits_are_those_of_a_product_in_bf16(inner, cap):
    hidden, weight, targets = inputs(torch.bfloat16)
    kept = targets != IGNORE
    loss = linear_cross_entropy(hidden, weight, targets, vocab_size=V, chunk=9, cap=cap, inner=inner, rounded=True)
    loss.backward()
    logits = (hidden.detach() @ weight.detach().T).double()[:, :V].requires_grad_()
    capped = cap * torch.tanh(logits / cap) if cap else logits
    expected = -capped[kept].log_softmax(-1)[range(int(kept.sum())), targets[kept]].sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double()[:V], logits.grad.T @ hidden.detach().double(), rtol=2e-2, atol=2e-2)


def test_inner_can_be_replaced():
    calls = []

    def counted(*args):
        calls.append(args)
        return chunk_loss(*args)

    loss, *_ = run("chunked", torch.float32, 0.0, chunk=8, inner=counted)
    assert len(calls) == 3
    torch.testing.assert_close(loss, run("plain", torch.float32, 0.0)[0])


def test_unknown_backend():
    with pytest.raises(UserError, match="Did you mean 'chunked'"):
        linear_cross_entropy(*inputs(torch.float32), backend="chunkd")


@pytest.mark.parametrize(
    "tokens, rows, chunk", [(65_536, 32_000, 16_384), (16_777, 32_000, 16_777), (5, 2**30, 1), (0, 9, 1)]
)
def test_chunks_are_equal(tokens, rows, chunk):
    """A last chunk of another length would be another compiled shape."""
    assert even_chunk(tokens, rows) == chunk
    assert even_chunk(32_768, 32_000, few=True) == 4_096, "at most 4,194, where memory is to be saved"


def test_derivatives_that_only_plain_torch_has():
    """torch.func.grad failed in torch's words, and a second derivative was wrong, in silence: the loss's own was 0."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 7, IGNORE, 3, 3])
    weight = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)

    def loss(inputs, backend):
        return linear_cross_entropy(inputs.tanh(), weight, targets, backend=backend)

    for differentiate in (
        torch.func.grad(lambda x: loss(x, "chunked")),
        lambda x: hessian(lambda x: loss(x, "chunked"), x),
    ):
        with pytest.raises(
            UserError, match=r"no (derivatives by torch\.func|second derivatives).*loss_backend='plain'"
        ):
            differentiate(inputs)
    found = torch.func.grad(lambda x: loss(x, "plain"))(inputs)
    leaf = inputs.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(loss(leaf, "chunked"), leaf)[0])
    torch.testing.assert_close(
        hessian(lambda x: loss(x, "plain"), inputs), torch.func.hessian(lambda x: loss(x, "plain"))(inputs)
    )
