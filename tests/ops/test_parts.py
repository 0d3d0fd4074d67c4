"""Products in bf16 parts: exact parts, errors beside those of fp32, gradients, and what a compiler makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.ops.parts import in_parts, linear_fp32, split

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])


def numbers() -> torch.Tensor:
    """fp32 of many sizes and both signs, some with all bits set."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator) * torch.exp2(torch.randint(-60, 60, (64, 32), generator=generator))
    x[0] = torch.tensor(2.0) - 2.0**-23
    x[1] = 0.0
    return x


@pytest.mark.parametrize("device, compiled", [("cpu", False), pytest.param("cuda", True, marks=CUDA)])
def test_three_parts_are_the_number(device: str, compiled: bool) -> None:
    """Compiled on a GPU only: there it matters, and a compiler for a CPU takes half a minute."""
    x = numbers().to(device)
    parts = (torch.compile(split) if compiled else split)(x)
    assert all(part.dtype == torch.bfloat16 for part in parts)
    assert torch.equal(torch.stack([part.double() for part in parts]).sum(0), x.double())
    assert parts[2].any()


def case(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (300, 512), (24, 512), (300, 24)
    x, weight, dy = (torch.randn(s, generator=generator).to(device) for s in shapes)
    return x.bfloat16().requires_grad_(), weight.requires_grad_(), dy


def errors(function: Callable[..., torch.Tensor], device: str) -> dict[str, float]:
    """Relative errors against float64: of the output, and of the gradients of x and W."""
    x, weight, dy = case(device)
    y = function(x, weight)
    found = [y, *torch.autograd.grad(y, (x, weight), dy)]
    leaves = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = F.linear(*leaves)
    expected = [exact, *torch.autograd.grad(exact, leaves, dy.double())]
    return {n: ((a - b).norm() / b.norm()).item() for n, a, b in zip(("y", "x", "weight"), found, expected)}


def plain(x_ND: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
    return F.linear(x_ND.float(), weight_ED)


@DEVICES
def test_errors_are_those_of_fp32(device: str) -> None:
    """Of x to the rounding to bf16, which both do: the root mean square of it is 0.0017."""
    found, fp32 = errors(in_parts, device), errors(plain, device)
    print(device, found, fp32)
    assert found["x"] == pytest.approx(fp32["x"], rel=0.01) and fp32["x"] < 0.002
    assert all(found[key] < 4 * fp32[key] and fp32[key] < 1e-6 for key in ("y", "weight"))
    rounded = errors(lambda x, weight: F.linear(x, weight.bfloat16()).float(), device)
    assert all(found[key] < 1e-3 * rounded[key] for key in ("y", "weight"))


def test_what_is_done_where() -> None:
    x, weight, _ = case("cpu")
    assert torch.equal(linear_fp32(x, weight), plain(x, weight))
    assert linear_fp32(x.double(), weight.double()).dtype == torch.float64
    assert linear_fp32(x.double(), weight).dtype == torch.float64
