"""Elementwise chains as one kernel: the numbers of the chain itself, and only where nothing else compiles them."""

from __future__ import annotations

import pytest
import torch

from lit_gpt.nn.mlp import swiglu
from lit_gpt.nn.rotary import rotate
from lit_gpt.ops import fused


def test_what_trains_or_is_small_or_on_a_cpu_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_compiled", lambda function: pytest.fail("compiled"))
    gate = torch.randn(3, 5, requires_grad=True)
    swiglu(gate, gate.detach()).sum().backward()
    assert gate.grad is not None
    with torch.inference_mode():
        assert swiglu(torch.zeros(2**21 + 1), torch.ones(1)).count_nonzero() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_one_kernel_agrees_with_the_chain_at_every_length() -> None:
    torch.manual_seed(0)
    for length in (1024, 1031, 2048):
        x = torch.randn(8, length, 4, 128, device="cuda", dtype=torch.bfloat16)
        angle = torch.rand(length, 64, device="cuda")
        with torch.inference_mode():
            turned, gated = rotate(x, angle.cos(), angle.sin()), swiglu(x, x.flip(0))
        a, x64 = angle.double()[:, None], x.double()
        x1, x2 = x64[..., :64], x64[..., 64:]
        expected = torch.cat([x1 * a.cos() - x2 * a.sin(), x2 * a.cos() + x1 * a.sin()], -1)
        torch.testing.assert_close(turned.double(), expected, rtol=2**-8, atol=1e-5)  # bf16 keeps 8 bits
        # The chain rounds silu(g) to bf16 first, so that two roundings part it from float64.
        torch.testing.assert_close(gated.double(), torch.nn.functional.silu(x64) * x64.flip(0), rtol=2**-7, atol=1e-5)
