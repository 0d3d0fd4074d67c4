"""Sums of products of powers: the descent finds what scipy finds, from many starts and over many sets at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.descent import descend, huber
from lit_gpt.scaling.experts import KRAJEWSKI, LUDZIEJEWSKI, granular_problem, helpful, joint_problem
from lit_gpt.scaling.sums import HUBER_DELTA, Problem

GRID = np.array(list(product(np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4), (1, 2, 8, 32)))).T
FINE = np.array(list(product(np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4), (1, 2, 4, 16)))).T


def noisy(y: np.ndarray, size: float, seed: int = 0) -> np.ndarray:
    return y * np.exp(size * np.random.default_rng(seed).standard_normal(len(y)))


def naive(terms: np.ndarray, point: np.ndarray) -> np.ndarray:
    return np.log(sum(np.exp(term @ point) for term in terms))


def test_values_and_derivatives_are_those_of_the_sum():
    problem, point = joint_problem(*GRID), np.array([-1.0, -0.2, 0.1, 0.01, -1.2, -0.3, 0.2, -0.02, 0.3])
    values, slopes, bend = problem.model(point[None])
    assert bend is not None
    np.testing.assert_allclose(values[0], naive(problem.terms, point), rtol=1e-12)
    factors = np.random.default_rng(0).standard_normal(len(values[0]))
    for i in range(len(point)):
        step = np.where(np.arange(len(point)) == i, 1e-5, 0.0)
        central = (naive(problem.terms, point + step) - naive(problem.terms, point - step)) / 2e-5
        np.testing.assert_allclose(slopes[0, :, i], central, rtol=1e-6, atol=1e-9)
        high, low = (factors @ problem.model((point + sign * step)[None])[1][0] for sign in (1, -1))
        np.testing.assert_allclose(bend(factors[None])[0, i], (high - low) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("problem", "loss"),
    [(joint_problem(*GRID), LUDZIEJEWSKI(*GRID)), (granular_problem(*FINE), KRAJEWSKI(*FINE))],
    ids=["joint", "granular"],
)
def test_no_descent_of_scipy_ends_lower(problem: Problem, loss: np.ndarray):
    optimize = pytest.importorskip("scipy.optimize")
    loss = noisy(loss, 0.004)
    loss[5] *= 1.1  # a run that stands apart
    ln_loss, rng = np.log(loss), np.random.default_rng(0)

    def objective(point: np.ndarray) -> float:
        left = np.abs(naive(problem.terms, point) - ln_loss)
        return float(np.where(left < HUBER_DELTA, left**2 / 2, HUBER_DELTA * (left - HUBER_DELTA / 2)).sum())

    found = problem.fit(loss)
    for _ in range(4):
        start = found + 0.1 * rng.standard_normal(len(found))
        other = optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-9})
        assert objective(found) <= other.fun * (1 + 1e-6)


def test_a_resample_is_fitted_as_by_itself():
    problem, rng = granular_problem(*FINE), np.random.default_rng(2)
    loss = noisy(KRAJEWSKI(*FINE), 0.002)
    counts = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), size=3).astype(float)
    many = problem.refit(problem.fit(loss), np.tile(loss, (3, 1)), counts)
    for law, count in zip(many, counts):
        rows = np.repeat(np.arange(len(loss)), count.astype(int))
        alone = granular_problem(*FINE[:, rows])
        assert law.alpha == pytest.approx(alone.read(alone.fit(loss[rows])).alpha, rel=1e-3)


def test_units_do_not_matter():
    n, d, experts = GRID
    loss = noisy(LUDZIEJEWSKI(*GRID), 0.002)
    one, two = joint_problem(n, d, experts), joint_problem(n / 1e6, d / 1e9, experts)
    first, second = one.read(one.fit(loss)), two.read(two.fit(loss / np.log(2)))
    np.testing.assert_allclose(first(n, d, experts), np.log(2) * second(n / 1e6, d / 1e9, experts), rtol=1e-6)


def test_huber_is_least_squares_without_a_delta():
    left = np.array([[1.0, -3.0, 0.5]])
    assert huber(left, np.ones((1, 3)), np.inf)[0] == pytest.approx((left**2).sum() / 2)

    def line(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        x = np.stack([np.ones(5), np.arange(5.0)], 1)
        return points @ x.T, np.broadcast_to(x, (len(points), 5, 2)), None

    y, every = np.array([1.0, 3.0, 2.0, 5.0, 4.0]), np.ones(2, dtype=bool)
    found, _ = descend(line, y, np.zeros((1, 2)), np.ones((1, 5)), every)
    np.testing.assert_allclose(found[0], np.polyfit(np.arange(5.0), y, 1)[::-1], rtol=1e-6)


def test_runs_that_leave_numbers_open_are_known():
    n, d, _ = GRID
    with pytest.raises(UserError, match="needs 2 different experts"):
        joint_problem(n, d, np.ones_like(n))
    few = np.array(list(product((1e8, 1e9), (1e9, 1e10), (1, 4, 16)))).T  # two sizes and budgets show no bend
    open_ = granular_problem(*few)
    assert open_.undetermined(open_.fit(KRAJEWSKI(*few)))
    told = granular_problem(*FINE)
    assert not told.undetermined(told.fit(noisy(KRAJEWSKI(*FINE), 0.002)))
    with pytest.raises(UserError, match="9 free numbers and got 6 runs"):
        joint_problem(*GRID[:, ::11]).fit(LUDZIEJEWSKI(*GRID[:, ::11]))


def test_published_laws_of_experts():
    """Numbers of the papers' own tables (reference: arXiv:2502.05172, per-E fits and optima; 2402.07871, table 2)."""
    assert float(helpful(1)) == pytest.approx(2.0732, rel=1e-6)
    for experts, size, exponent in ((1, 30.364, -0.1817), (8, 21.833, -0.1676), (32, 16.54, -0.1557)):
        ln_e = float(np.log(helpful(experts)))
        assert LUDZIEJEWSKI.a * np.exp(LUDZIEJEWSKI.delta * ln_e) == pytest.approx(size, rel=0.02)
        assert LUDZIEJEWSKI.alpha + LUDZIEJEWSKI.gamma * ln_e == pytest.approx(exponent, abs=2e-3)
    for experts, size, tokens in ((1, 1.7e9, 9.7e9), (8, 990e6, 17e9), (32, 669e6, 24.9e9)):
        assert LUDZIEJEWSKI.optimum(1e20, experts) == pytest.approx((size, tokens), rel=0.03)
    whole = (4 + 64 * 8) / 12  # of 12 d^2 parameters of a dense block 8 are experts, of which there are 64
    assert float(KRAJEWSKI(whole * 100e6, 4.37e9, 8)) == pytest.approx(3.133, abs=0.04)
    assert float(KRAJEWSKI(whole * 1e9, 28.94e9, 16)) == pytest.approx(2.491, abs=0.04)


def test_an_optimum_is_the_lowest_loss_of_its_budget():
    for experts in (1, 8):
        n, d = LUDZIEJEWSKI.optimum(1e20, experts)
        others = n * np.geomspace(0.5, 2, 21)
        assert LUDZIEJEWSKI(n, d, experts) <= LUDZIEJEWSKI(others, 1e20 / 6 / others, experts).min() + 1e-12
