"""Newton-Schulz against singular value decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from lit_gpt.errors import UserError
from lit_gpt.ops.newton_schulz import SETS, coefficients, orthogonalize


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(3, 7, 19), (2, 19, 7), (1, 8, 8), (4, 1, 5)])
def test_applies_the_polynomials_to_the_singular_values(name: str, shape: tuple[int, ...]) -> None:
    x, triples = matrices(*shape), coefficients(name, 6)
    found = orthogonalize(x, triples, torch.float32)
    for o, m in zip(found, x):
        np.testing.assert_allclose(o.numpy(), references.newton_schulz(m.double().numpy(), triples), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "steps", "low", "high"),
    [("muon", 5, 0.68, 1.21), ("tuned", 5, 0.85, 1.15), ("polar_express", 8, 0.999, 1.001)],
)
def test_singular_values_end_near_one(name: str, steps: int, low: float, high: float) -> None:
    s = np.geomspace(0.01, 1, 1000)
    for a, b, c in coefficients(name, steps):
        s = a * s + b * s**3 + c * s**5
    assert low < s.min() and s.max() < high


def test_polar_express_with_its_safety_factor_is_muonballs() -> None:
    """The published coefficients over 1.01, 1.01^3 and 1.01^5 are those printed for MuonBall, to four digits."""
    np.testing.assert_allclose(coefficients("polar_express", 5), references.BALL, atol=6e-5)
    assert coefficients("polar_express", 10)[-3:] == [(1.875, -1.25, 0.375)] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Gradients far below the smallest number of fp16 keep their direction: the norm goes out first."""
    x = matrices(2, 16, 48)
    exact = orthogonalize(x, coefficients("tuned", 5), torch.float32)
    found = orthogonalize(x * 1e-5, coefficients("tuned", 5), dtype)
    assert found.dtype == dtype
    assert (found.float() - exact).norm() < 2e-2 * exact.norm()


def test_nothing_and_zero() -> None:
    assert orthogonalize(torch.zeros(0, 4, 6), coefficients("muon", 5), torch.bfloat16).shape == (0, 4, 6)
    assert orthogonalize(torch.zeros(2, 6, 4), coefficients("muon", 5), torch.float32).abs().max() == 0


def test_an_unknown_backend() -> None:
    with pytest.raises(UserError, match=r"Unknown Newton-Schulz backend 'quak'\. Did you mean 'quack'"):
        orthogonalize(matrices(1, 2, 3), coefficients("muon", 5), torch.float32, "quak")
    with pytest.raises(UserError, match="it needs a CUDA device"):
        orthogonalize(matrices(1, 8, 8), coefficients("muon", 5), torch.bfloat16, "quack")
