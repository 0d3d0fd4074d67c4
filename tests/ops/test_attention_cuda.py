"""The CUDA backends in bf16 against plain torch in fp32, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.ops import attention as ops
from lit_gpt.ops import flash
from lit_gpt.ops.backends import missing
from lit_gpt.ops.boundaries import document_offsets
from lit_gpt.ops.forgetting import forgetting_attention
from lit_gpt.ops.loss import chunk_loss, linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
LENGTH, HEADS, GROUPS = 700, 8, 2


CASES = [(None, False, False), (128, False, False), (None, True, False), (300, True, True), (None, False, True)]


def documents() -> Tensor:
    return torch.stack([torch.arange(LENGTH) // 200, torch.arange(LENGTH) // 333]).cuda()


def run(
    dtype: torch.dtype, backend: str, dim: int, window, packed: bool, sinks: bool, width: int | None = None
) -> list[Tensor]:
    """Output, gradients of q, k, v and, with sinks, of these; then the size of the terms that its sum has."""
    g = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, LENGTH, HEADS, dim), (2, LENGTH, GROUPS, dim), (2, LENGTH, GROUPS, width or dim)]
    q, k, v = (torch.randn(s, generator=g, device="cuda").to(dtype).requires_grad_() for s in shapes)
    doc_ids = documents() if packed else None
    offsets = document_offsets(doc_ids) if packed and backend in ("auto", *flash.LIBRARIES) else None
    sink = torch.linspace(-1, 3, HEADS, device="cuda").requires_grad_() if sinks else None
    options: dict = {"window": window, "doc_ids": doc_ids, "cu_seqlens": offsets, "sink": sink, "backend": backend}
    y = ops.attention(q, k, v, **options)
    dy = torch.randn(y.shape, generator=g, device="cuda").to(dtype)
    y.backward(dy)
    tensors = [y.detach(), q.grad, k.grad, v.grad]
    if sink is not None:
        with torch.no_grad():  # d loss / d sink = -sum over positions of p_sink (dy . y); weights sum to 1 - p_sink
            p_sink = 1 - ops.attention(q, k, torch.ones_like(v), **options)[..., 0].float()
        tensors += [sink.grad, (p_sink * (dy * tensors[0]).float().sum(-1)).norm()]
    return [t.float() for t in tensors if t is not None]


def assert_near(ours: list[Tensor], *case) -> None:
    """Within 1% of plain torch in fp32. The gradient of a sink nearly cancels, and rounding is that of its terms: it
    is within 2% of the root of the sum of their squares.
    """
    exact = run(torch.float32, "plain", *case)
    for a, b in zip(ours[:4], exact):
        assert (a - b).norm() < 0.01 * b.norm()
    for a, b, terms in zip(ours[4:5], exact[4:5], exact[5:]):
        assert (a - b).norm() < 0.02 * terms


@pytest.mark.parametrize(("dim", "width"), [(124, 124), (128, 128), (64, 128), (128, 256), (128, 72)])
@pytest.mark.parametrize(("window", "packed", "sinks"), CASES)
def test_auto_agrees_with_plain_torch(window, packed, sinks, dim, width):
    """Values wider than queries are those of differential attention."""
    ours = run(torch.bfloat16, "auto", dim, window, packed, sinks, width)
    assert_near(ours, dim, window, packed, sinks, width)


@pytest.mark.parametrize(("dim", "width"), [(124, 124), (128, 128), (64, 128)])
@pytest.mark.parametrize("packed", [False, True])
def test_bands_agree_with_plain_torch(packed, dim, width):
    ours = run(torch.bfloat16, "banded", dim, 128, packed, False, width)
    assert_near(ours, dim, 128, packed, False, width)


@pytest.mark.parametrize("dim", [64, 124, 128])
@pytest.mark.parametrize(("window", "packed", "sinks"), CASES[:3] + [(300, True, False)])
@pytest.mark.parametrize("backend", flash.LIBRARIES)
def test_flash_attention_agrees_with_plain_torch(backend, window, packed, sinks, dim):
    reason = flash.refuses(backend, ops.describe(torch.device("cuda"), 8, 8, None, False, False, torch.bfloat16))
    if reason:
        pytest.skip(reason)
    ours = run(torch.bfloat16, backend, dim, window, packed, sinks)
    assert_near(ours, dim, window, packed, sinks)


@pytest.mark.skipif(missing("fla.ops.forgetting_attn") != "", reason="needs fla")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 128])
def test_forgetting_attention_agrees_with_plain_torch(window, packed):
    results = []
    for backend, dtype in (("fla", torch.bfloat16), ("plain", torch.float32)):
        g = torch.Generator("cuda").manual_seed(0)
        q, k, v = (
            torch.randn(2, LENGTH, h, 64, generator=g, device="cuda").to(dtype).requires_grad_()
            for h in (HEADS, GROUPS, GROUPS)
        )
        gates = (torch.randn(2, LENGTH, HEADS, generator=g, device="cuda") + 3).requires_grad_()
        ids = documents() if packed else None
        offsets = None if ids is None else document_offsets(ids)
        log_forget = torch.nn.functional.logsigmoid(gates)
        y = forgetting_attention(
            q, k, v, log_forget, scale=0.125, window=window, doc_ids=ids, cu_seqlens=offsets, backend=backend
        )
        y.backward(torch.randn(y.shape, generator=g, device="cuda").to(dtype))
        results.append([t.float() for t in (y, q.grad, k.grad, v.grad, gates.grad) if t is not None])
    for a, b in zip(*results):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mixer", ["attention", "differential_attention", "sigmoid_attention", "fox"])
def test_whole_models_with_documents(mixer, compiled):
    """bf16 with kernels, eager and compiled, against fp32 without; cross-attention and units after the mixer."""
    stem = "differential_" if mixer.startswith("diff") else ""
    layers = (
        LayerSpec(mixer, window=100),
        LayerSpec(mixer, memory="mixer"),
        LayerSpec("gmu", shares=1),
        LayerSpec(f"{stem}cross_attention", shares=1),
    )
    config = ModelConfig(
        "test", 4, 128, 4, 64, 2, 256, layers, vocab_size=512, block_size=LENGTH, qk_norm=True, attn_conv=True
    )
    torch.manual_seed(0)
    tokens, ids = torch.randint(0, 512, (2, LENGTH), device="cuda"), documents()
    exact = GPT(config, attention_backend="plain", kernels="plain").cuda()
    fast = GPT(config, compute_dtype=torch.bfloat16).cuda()
    for p in exact.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.1)
    fast.load_state_dict(exact.state_dict())
    if compiled:
        for block in fast.blocks:
            block.forward = torch.compile(block.forward)
    a, b = fast(tokens, doc_ids_BT=ids).logits, exact(tokens, doc_ids_BT=ids).logits
    assert (a - b).norm() < 0.03 * b.norm()
    a.square().mean().backward()
    b.square().mean().backward()
    for p, q in zip(fast.parameters(), exact.parameters()):
        assert p.grad is not None and q.grad is not None
        assert (p.grad - q.grad).norm() < 0.1 * q.grad.norm() + 1e-6


def test_causal_attention_of_torch_runs_on_cudnn():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(torch.bfloat16, "sdpa", 128, None, False, False)
    names = " ".join(e.key for e in profile.key_averages()).lower()
    assert "cudnn" in names


@pytest.mark.parametrize("window", [None, 128])
def test_cached_decoding(window):
    q, k, v = (torch.randn(2, 300, h, 128, device="cuda", dtype=torch.bfloat16) for h in (HEADS, GROUPS, GROUPS))
    full = ops.attention(q, k, v, window=window, backend="plain")
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


@torch.inference_mode()
def test_many_shapes_share_one_kernel() -> None:
    """Batches of an evaluation differ in shape, and compiling flex attention for each would take seconds."""
    torch.compiler.reset()
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    for length in (256, 300, 500, 700, 900):
        x = torch.randn(2, length, HEADS, 64, device="cuda", dtype=torch.bfloat16)
        y, expected = (ops.attention(x, x, x, window=100, backend=name) for name in ("flex", "plain"))
        assert (y - expected).norm() < 0.01 * expected.norm()
    assert stats["unique_graphs"] - before <= 2
