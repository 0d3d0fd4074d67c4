"""Fits recover the curves that made the data, and published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.fit import (
    PowerLaw,
    fit_power_law,
    fit_trend,
)
from lit_gpt.scaling.intervals import bootstrap, leave_one_out
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, Chinchilla, fit_chinchilla

FLOPS = np.geomspace(1e18, 1e22, 7)


@pytest.mark.parametrize("law", [PowerLaw(1e3, 0.15, 1.7), PowerLaw(40.0, 0.06, 0.0), PowerLaw(1e9, 0.5, 2.5)])
def test_power_law_is_recovered(law: PowerLaw):
    found = fit_power_law(FLOPS, law(FLOPS))
    assert (found.b, found.c) == pytest.approx((law.b, law.c), rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(found(FLOPS), law(FLOPS), rtol=1e-7)


def test_power_law_is_the_global_optimum_under_noise():
    law, rng = PowerLaw(1e3, 0.15, 1.7), np.random.default_rng(0)
    y = law(FLOPS) + rng.normal(0, 0.01, len(FLOPS))
    found = fit_power_law(FLOPS, y)
    error = float(((found(FLOPS) - y) ** 2).sum())
    for b in np.linspace(0.02, 0.5, 25):
        for c in np.linspace(0, y.min(), 40):
            p = FLOPS**-b
            a = float(p @ (y - c) / (p @ p))
            assert error <= float(((a * p + c - y) ** 2).sum())


def test_bounds_on_the_floor():
    concave = np.array([3.0, 2.9, 2.5, 1.0])  # falls faster and faster: the free optimum has c < 0
    assert fit_power_law(np.array([1.0, 2.0, 4.0, 8.0]), concave).c == 0.0
    bare = fit_power_law(FLOPS, PowerLaw(40.0, 0.06)(FLOPS), offset=0.0)
    assert (bare.a, bare.b, bare.c) == pytest.approx((40.0, 0.06, 0.0))
    flat = fit_power_law(FLOPS, np.full(len(FLOPS), 2.0))
    np.testing.assert_allclose(flat(FLOPS), 2.0, rtol=1e-3)


def test_inverse():
    law = PowerLaw(1e3, 0.15, 1.7)
    assert law.inverse(float(law(3e20))) == pytest.approx(3e20)
    assert law.inverse(1.7) == math.inf


def test_trend_takes_either_sign():
    x = np.array([1e9, 4e9, 3e10])
    for b in (0.32, -0.5):
        found = fit_trend(x, PowerLaw(5.0, b)(x))
        assert (found.a, found.b) == pytest.approx((5.0, b))


def test_too_few_or_bad_points_are_refused():
    with pytest.raises(UserError, match="needs 3 different x"):
        fit_power_law(FLOPS[:2], np.array([3.0, 2.0]))
    with pytest.raises(UserError, match="finite positive"):
        fit_trend(FLOPS[:2], np.array([3.0, float("nan")]))


def test_published_optima():
    """Approach 3 gives 40B parameters at Gopher's compute (2203.15556); the replication's exponent is .513.

    The law's numbers have the digits that the paper's table rounds away.
    """
    n, d = Chinchilla(406.4015, 410.7229, 1.693372, 0.33917084, 0.2849083).optimum(5.76e23)
    assert n == pytest.approx(40e9, rel=0.02) and 6 * n * d == pytest.approx(5.76e23)
    growth = BESIROGLU.optimum(1e22)[0] / BESIROGLU.optimum(1e21)[0]
    assert math.log10(growth) == pytest.approx(0.513, abs=5e-4)


def test_optimum_is_a_minimum_of_the_loss():
    n, _ = BESIROGLU.optimum(1e21)
    sizes = n * np.geomspace(0.1, 10, 1001)
    assert int(np.argmin(BESIROGLU(sizes, 1e21 / (6 * sizes)))) == 500


@pytest.mark.parametrize(("spoilt", "tolerance"), [(0, 1e-5), (10, 0.05)])
def test_chinchilla_is_recovered(spoilt: int, tolerance: float):
    """Exactly without noise; closely when a tenth of the runs went wrong, thanks to Huber."""
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(18, 23.5, 100)), np.exp(rng.uniform(20.5, 26.5, 100))
    loss = BESIROGLU(n, d)
    loss[:spoilt] *= 1.05
    found = fit_chinchilla(n, d, loss)
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(BESIROGLU, name), rel=tolerance)


def test_resampling():
    y = PowerLaw(1e3, 0.15, 1.7)(FLOPS)
    y[3] += 0.1
    floors = [fit.c for fit in leave_one_out(fit_power_law, FLOPS, y)]
    assert floors[3] == pytest.approx(1.7, abs=1e-3)
    assert len(floors) == len(FLOPS) and abs(floors[0] - 1.7) > 0.01
    x = np.geomspace(1, 100, 30)
    noisy = PowerLaw(2.0, 0.5)(x) * np.exp(np.random.default_rng(1).normal(0, 0.05, 30))
    slopes = [fit.b for fit in bootstrap(fit_trend, x, noisy, samples=200)]
    low, high = np.quantile(slopes, [0.025, 0.975])
    assert low < 0.5 < high < 0.6 and low > 0.4
