"""Newton-Schulz against singular value decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.ops.newton_schulz import SETS, iteration, orthogonalize
from lit_gpt.optim.engine import reference


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(3, 7, 19), (2, 19, 7), (1, 8, 8), (4, 1, 5)])
def test_applies_the_polynomials_to_the_singular_values(name: str, shape: tuple[int, ...]) -> None:
    x, how = matrices(*shape), iteration(name, 6)
    found = orthogonalize(x, how, torch.float32)
    for o, m in zip(found, x):
        np.testing.assert_allclose(o.numpy(), reference.newton_schulz(m.double().numpy(), *how), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "steps", "low", "high"),
    [("muon", 5, 0.68, 1.21), ("tuned", 5, 0.85, 1.15), ("polar_express", 8, 0.999, 1.001)],
)
def test_singular_values_end_near_one(name: str, steps: int, low: float, high: float) -> None:
    s = np.geomspace(0.01, 1, 1000)
    for a, b, c in iteration(name, steps).triples:
        s = a * s + b * s**3 + c * s**5
    assert low < s.min() and s.max() < high


def test_polar_express_with_its_safety_factor_is_muonballs() -> None:
    """The published coefficients over 1.01, 1.01^3 and 1.01^5 are those printed for MuonBall, to four digits."""
    np.testing.assert_allclose(iteration("polar_express", 5).triples, reference.POLAR_EXPRESS, atol=6e-5)
    assert iteration("polar_express", 10).triples[-3:] == [(1.875, -1.25, 0.375)] * 3


def minimax(low: float, high: float) -> np.ndarray:
    """The odd quintic that is closest to 1 on [low, high], as a linear program over a grid."""
    optimize = pytest.importorskip("scipy.optimize")
    x = np.concatenate([np.geomspace(low, high, 4000), high - np.geomspace(1e-9, high - low, 4000)])
    powers, one = np.stack([x, x**3, x**5], axis=1), np.ones((len(x), 1))
    bounds = np.vstack([np.hstack([powers, -one]), np.hstack([-powers, -one])])
    right = np.concatenate([one, -one])[:, 0]
    return optimize.linprog([0, 0, 0, 1], bounds, right, bounds=[(None, None)] * 4, method="highs").x[:3]


def test_polar_express_is_greedily_optimal() -> None:
    """The paper's algorithm (its listing): for singular values from 1e-3, its cushion, safety after the optimum."""
    low, high, cushion = 1e-3, 1.0, 0.02407327424182761
    for i, found in enumerate(iteration("polar_express", 6).triples):
        triple = minimax(max(low, cushion * high), high)
        ends = [float(triple @ [s, s**3, s**5]) for s in (low, high)]
        triple = triple * (2 / sum(ends) if cushion * high > low else 1.0)
        np.testing.assert_allclose(found, triple / 1.01 ** np.array([1, 3, 5]), atol=2e-4, err_msg=str(i))
        low = float(triple @ [low, low**3, low**5])
        high = 2 - low


def test_polar_express_starts_from_less_than_the_norm() -> None:
    """The paper's code divides by 1.01 |x| + 1e-7; dividing by |x| was 0.05 off, in float64 and one step at a time."""
    x = matrices(12, 31)
    u = x.double() / (1.01 * x.double().norm())
    for a, b, c in iteration("polar_express", 5).triples:
        gram = u @ u.T
        u = a * u + (b * gram + c * gram @ gram) @ u
    found = orthogonalize(x[None], iteration("polar_express", 5), torch.float32)[0]
    torch.testing.assert_close(found.double(), u, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Gradients far below the smallest number of fp16 keep their direction: the norm goes out first."""
    x = matrices(2, 16, 48)
    exact = orthogonalize(x, iteration("tuned", 5), torch.float32)
    found = orthogonalize(x * 1e-5, iteration("tuned", 5), dtype)
    assert found.dtype == dtype
    assert (found.float() - exact).norm() < 2e-2 * exact.norm()


def test_nothing_and_zero() -> None:
    assert orthogonalize(torch.zeros(0, 4, 6), iteration("muon", 5), torch.bfloat16).shape == (0, 4, 6)
    assert orthogonalize(torch.zeros(2, 6, 4), iteration("muon", 5), torch.float32).abs().max() == 0


def test_an_unknown_backend() -> None:
    with pytest.raises(UserError, match=r"Unknown Newton-Schulz backend 'quak'\. Did you mean 'quack'"):
        orthogonalize(matrices(1, 2, 3), iteration("muon", 5), torch.float32, "quak")
    with pytest.raises(UserError, match="it needs a CUDA device"):
        orthogonalize(matrices(1, 8, 8), iteration("muon", 5), torch.bfloat16, "quack")


@pytest.mark.parametrize("steps", [0, -1, 10**6, 10**22])
def test_numbers_of_steps(steps: int) -> None:
    """The list of 10^22 steps was built until the machine had no memory left."""
    with pytest.raises(UserError, match="from 1 to 100"):
        iteration("muon", steps)
