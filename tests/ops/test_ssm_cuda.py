"""The CUDA kernels of convolution and scans in bf16 against plain torch in fp32, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lit_gpt.nn.linear import laid_along_time, lies_along_time
from lit_gpt.ops import conv, selective_scan, ssd
from lit_gpt.ops.backends import missing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
B, T = 2, 700


def needs(module: str) -> pytest.MarkDecorator:
    # Not evaluated elsewhere: importing these libraries without a GPU can fail late.
    return pytest.mark.skipif(torch.cuda.is_available() and bool(missing(module)), reason=f"needs {module}")


def documents() -> Tensor:
    """Boundaries next to each other, inside and at the edges of the kernels' chunks of 256."""
    t = torch.arange(T)
    return torch.stack([(t > 99).long() + (t > 100).long() + (t >= 256).long() + (t > 600).long(), (t >= 333).long()])


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g) for s in shapes]


def compare(run: Callable[..., tuple[Tensor, Tensor]], half: list[Tensor], full: list[Tensor], name: str, packed: bool):
    """half: inputs in bf16. full: in fp32. run(*half, *full, doc_ids=, backend=) by name and in plain torch."""
    ids = documents().cuda() if packed else None
    results = []
    for backend, dtype in ((name, torch.bfloat16), ("plain", torch.float32)):
        halves = [t.cuda().bfloat16().to(dtype).requires_grad_() for t in half]
        fulls = [t.cuda().requires_grad_() for t in full]
        y, state = run(halves, fulls, doc_ids=ids, backend=backend)
        g = torch.Generator("cuda").manual_seed(1)
        weight = torch.randn(y.shape, generator=g, device="cuda").bfloat16()
        results.append([y, state, *torch.autograd.grad((y * weight.to(dtype)).sum(), halves + fulls)])
    for i, (ours, theirs) in enumerate(zip(*results)):
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < 0.02, f"tensor {i} is off by {error:.2%}"


@pytest.mark.parametrize("name", ["causal_conv1d", "fla"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution(name, packed, activation):
    request = conv.Request("cuda", torch.bfloat16, 64, 4, packed)
    if reason := conv.BACKENDS[name].refuses(request):
        pytest.skip(reason)

    def run(half: list[Tensor], full: list[Tensor], **options) -> tuple[Tensor, Tensor]:
        return conv.causal_conv(half[0], *full, activation=activation, **options)

    compare(run, draw((B, T, 64)), draw((64, 1, 4), (64,), seed=1), name, packed)


@needs(conv.PIECES)
@pytest.mark.parametrize("packed", [False, True])
def test_convolution_in_pieces(packed):
    """Each of its own kernel, from a part of a wider product."""

    def run(half: list[Tensor], full: list[Tensor], **options) -> tuple[Tensor, Tensor]:
        pieces, state = conv.causal_conv_pieces(half[0][..., 8:], (16, 8, 40), *full, activation="silu", **options)
        return torch.cat(list(pieces), dim=-1), state

    compare(run, draw((B, T, 72)), draw((64, 1, 4), (64,), seed=1), "causal_conv1d", packed)


@needs("causal_conv1d")
@pytest.mark.parametrize("length", [T, 704])
def test_convolution_along_time(length):
    """704 tokens are whole words, which it loads at once; 700 are not."""

    def run(half: list[Tensor], full: list[Tensor], **options) -> tuple[Tensor, Tensor]:
        y, state = conv.causal_conv(laid_along_time(half[0]), *full, activation="silu", **options)
        assert lies_along_time(y) or options["backend"] == "plain"
        return y, state

    compare(run, draw((B, length, 64)), draw((64, 1, 4), (64,), seed=1), "causal_conv1d", False)


@needs("causal_conv1d")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_convolution_after_a_state(length, packed):
    x, state = (t.cuda().bfloat16() for t in draw((B, length, 96), (B, 64, 3)))
    weight, bias = (t.cuda() for t in draw((64, 1, 4), (64,), seed=1))
    x = x[..., 32:]  # a part of a wider product
    ids = (torch.arange(length, device="cuda") > torch.tensor([[0], [30]], device="cuda")).long() if packed else None
    ours, next_ours = conv.causal_conv(x, weight, bias, doc_ids=ids, state_BCK=state, backend="causal_conv1d")
    theirs, next_theirs = conv.causal_conv(x, weight, bias, doc_ids=ids, state_BCK=state, backend="plain")
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    assert torch.equal(next_ours, next_theirs)


@needs("mamba_ssm.ops.selective_scan_interface")
@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_selective_scan(packed, along):
    channels, states = 64, 16

    def run(half: list[Tensor], full: list[Tensor], **options) -> tuple[Tensor, Tensor]:
        x, dt, b, c = (laid_along_time(t) if along else t for t in half)
        A_log, D, dt_bias = full
        return selective_scan.selective_scan(x, dt, -A_log.exp(), b, c, D, dt_bias, **options)

    half = draw((B, T, channels), (B, T, channels), (B, T, states), (B, T, states))
    A_log, D, dt_bias = draw((channels, states), (channels,), (channels,), seed=1)
    compare(run, half, [A_log, D, dt_bias - 4], "mamba_ssm", packed)


@needs("mamba_ssm.ops.triton.ssd_combined")
@pytest.mark.parametrize("packed", [False, True])
def test_ssd(packed):
    heads, width, states = 8, 64, 128

    def run(half: list[Tensor], full: list[Tensor], **options) -> tuple[Tensor, Tensor]:
        x, dt, b, c = half
        A_log, D, dt_bias = full
        return ssd.ssd(x, dt, -A_log.exp(), b, c, D, dt_bias, **options)

    half = draw((B, T, heads, width), (B, T, heads), (B, T, 1, states), (B, T, 1, states))
    A_log, D, dt_bias = draw((heads,), (heads,), (heads,), seed=1)
    compare(run, half, [A_log, D, dt_bias - 4], "mamba_ssm", packed)


@needs("mamba_ssm.ops.triton.ssd_combined")
def test_ssd_after_a_state():
    tensors = draw((B, 300, 8, 64), (B, 300, 8), (8,), (B, 300, 1, 128), (B, 300, 1, 128), (8,), (8,))
    x, dt, A_log, b, c, D, dt_bias = (t.cuda() for t in tensors)
    state = torch.randn(B, 8, 64, 128, device="cuda")
    x, dt, b, c = (t.bfloat16() for t in (x, dt, b, c))
    results = [
        ssd.ssd(x.to(d), dt.to(d), -A_log.exp(), b.to(d), c.to(d), D, dt_bias - 4, state=state, backend=backend)
        for d, backend in ((torch.bfloat16, "mamba_ssm"), (torch.float32, "plain"))
    ]
    for ours, theirs in zip(*results):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()
