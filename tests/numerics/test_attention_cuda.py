"""The CUDA backends in bf16 against the fp32 reference, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_gpt.ops import attention as ops
from lit_gpt.ops.loss import chunk_loss, linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
LENGTH, HEADS, GROUPS = 700, 8, 2


def run(dtype: torch.dtype, backend: str, dim: int, window, packed: bool, sinks: bool) -> list[Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, LENGTH, HEADS, dim), (2, LENGTH, GROUPS, dim), (2, LENGTH, GROUPS, dim)]
    q, k, v = (torch.randn(s, generator=g, device="cuda").to(dtype).requires_grad_() for s in shapes)
    doc_ids = torch.stack([torch.arange(LENGTH) // 200, torch.arange(LENGTH) // 333]).cuda() if packed else None
    sink = torch.linspace(-1, 3, HEADS, device="cuda").requires_grad_() if sinks else None
    y = ops.attention(q, k, v, window=window, doc_ids=doc_ids, sink=sink, backend=backend)
    y.backward(torch.randn(y.shape, generator=g, device="cuda").to(dtype))
    tensors = [y, q.grad, k.grad, v.grad, *([sink.grad] if sink is not None else [])]
    return [t.float() for t in tensors if t is not None]


@pytest.mark.parametrize("dim", [124, 128])
@pytest.mark.parametrize(
    ("window", "packed", "sinks"),
    [(None, False, False), (128, False, False), (None, True, False), (300, True, True), (None, False, True)],
)
def test_auto_agrees_with_the_reference(window, packed, sinks, dim):
    ours = run(torch.bfloat16, "auto", dim, window, packed, sinks)
    theirs = run(torch.float32, "reference", dim, window, packed, sinks)
    for a, b in zip(ours, theirs):
        assert (a - b).norm() < 0.01 * b.norm()


def test_causal_attention_runs_on_cudnn():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(torch.bfloat16, "auto", 128, None, False, False)
    names = " ".join(e.key for e in profile.key_averages()).lower()
    assert "cudnn" in names


@pytest.mark.parametrize("window", [None, 128])
def test_cached_decoding(window):
    q, k, v = (torch.randn(2, 300, h, 128, device="cuda", dtype=torch.bfloat16) for h in (HEADS, GROUPS, GROUPS))
    full = ops.attention(q, k, v, window=window, backend="reference")
    for start in (299, 200):
        last = ops.attention(q[:, start:], k, v, window=window)
        torch.testing.assert_close(last, full[:, start:], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_chunked_loss(compiled):
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(1000, 64, generator=g, device="cuda").bfloat16()
    weight = torch.randn(320, 64, generator=g, device="cuda")
    targets = torch.randint(0, 300, (1000,), generator=g, device="cuda")
    inner = torch.compile(chunk_loss) if compiled else chunk_loss
    results = []
    for backend, cast in (("chunked", torch.bfloat16), ("plain", torch.float32)):
        h, w = (x.bfloat16().to(cast, copy=True).requires_grad_() for x in (hidden, weight))
        loss = linear_cross_entropy(
            h, w, targets, vocab_size=300, label_smoothing=0.1, backend=backend, chunk=300, inner=inner
        )
        loss.backward()
        results.append([loss.detach(), h.grad.float(), w.grad.float()])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    for a, b in zip(results[0][1:], results[1][1:]):
        assert (a - b).norm() < 0.01 * b.norm()
