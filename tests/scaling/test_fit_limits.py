"""Fits say what their data cannot tell, count what they skip, and their intervals hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.fit import (
    PowerLaw,
    fit_power_law,
    fit_trend,
    power_laws,
)
from lit_gpt.scaling.intervals import bootstrap
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, fit_chinchilla
from lit_gpt.scaling.sweeps import fit_optima

FLOPS = np.geomspace(1e18, 1e22, 8)
# A design of four sizes and four budgets.
SIZES, TOKENS = (m.ravel() for m in np.meshgrid(np.geomspace(5e7, 3e9, 4), np.geomspace(1e9, 2e11, 4)))


def test_a_square_design_is_fitted() -> None:
    """Sixteen runs of four sizes and four budgets were refused: "needs 5 different x"."""
    found = fit_chinchilla(SIZES, TOKENS, BESIROGLU(SIZES, TOKENS))
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(BESIROGLU, name), rel=1e-4), name
    assert found.notes == ()


def test_too_few_runs_for_the_law() -> None:
    """Two sizes, four runs, and a ladder of one ratio of tokens to parameters leave the law open."""
    loss = BESIROGLU(SIZES, TOKENS)
    two = SIZES < 3e8
    for n, d, y, says in (
        (SIZES[two], TOKENS[two], loss[two], "needs 3 different N"),
        (SIZES[[0, 5, 10]], TOKENS[[0, 5, 10]], loss[[0, 5, 10]], "needs 5 different runs, got 3"),
        (SIZES, 20 * SIZES, BESIROGLU(SIZES, 20 * SIZES), "needs 5 different runs, got 4"),
        (FLOPS, 20 * FLOPS, BESIROGLU(FLOPS, 20 * FLOPS), "D is one power of N"),
    ):
        with pytest.raises(UserError, match=says):
            fit_chinchilla(n, d, y)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_impossible_numbers(bad: float, column: int) -> None:
    """A diverged run's NaN, or a loss of 0, names its column."""
    data = [SIZES.copy(), TOKENS.copy(), BESIROGLU(SIZES, TOKENS)]
    data[column][3] = bad
    fits: list[Callable[[], object]] = [lambda: fit_power_law(*data[1:]), lambda: fit_optima(SIZES, *data[1:])]
    for fit in [lambda: fit_chinchilla(*data)] if column == 0 else fits:
        with pytest.raises(UserError, match=r"finite positive numbers, got (x|y|N|setting|loss) ="):
            fit()
    with pytest.raises(UserError, match="one number of each kind per run"):
        fit_trend(FLOPS, FLOPS[1:])


@pytest.mark.parametrize("offset", [None, 0.0])
def test_rising_losses_are_said(offset: float | None) -> None:
    """They came back as a law with the exponent 0.0001, the end of the range that is searched."""
    y = np.linspace(2.0, 3.0, len(FLOPS))
    found = fit_power_law(FLOPS, y, offset=offset)
    assert (found.a, found.b, found.c) == (pytest.approx(2.5), 0.0, 0.0)
    assert "does not fall" in found.notes[0] and found.inverse(2.0) == math.inf
    np.testing.assert_allclose(found(FLOPS), 2.5)


def test_losses_that_hardly_fall_have_no_exponent() -> None:
    """A fall of a thousandth over four decades came back as the exponent 0.0001 too."""
    found = fit_power_law(FLOPS, PowerLaw(3.0, 8e-5)(FLOPS), offset=0.0)
    assert math.isnan(found.a) and math.isnan(found.b) and "hardly falls" in found.notes[0]


def test_a_fall_at_once_has_no_exponent() -> None:
    """One point above a floor leaves open how it falls; the exponent was 10, the other end of the range."""
    found = fit_power_law(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([3.0, 2.0, 2.0, 2.0, 2.0]))
    assert math.isnan(found.b) and "floor at once" in found.notes[0]


def test_a_floor_of_nothing_is_said() -> None:
    """A fall that goes on faster and faster has its best floor below 0."""
    found = fit_power_law(np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 2.9, 2.5, 1.0]))
    assert found.c == 0.0 and "offset c is at its bound 0" in found.notes[0]


def test_one_outlier_is_named() -> None:
    """In a power law, a trend and a sweep; noise alone names none."""
    noises = np.random.default_rng(0).normal(0, 0.002, (20, len(FLOPS)))
    law, noise = PowerLaw(1e3, 0.15, 1.7), noises[0]
    for other in noises:
        assert not [note for note in fit_power_law(FLOPS, law(FLOPS) + other).notes if "outlier" in note]
    clean = law(FLOPS) + noise
    clean[5] += 0.1
    (note,) = fit_power_law(FLOPS, clean).notes
    assert f"x = {FLOPS[5]:.4g}" in note and "standard deviations" in note
    spoilt = PowerLaw(5.0, 0.3)(FLOPS) * np.exp(noise)
    spoilt[2] *= 1.2
    assert f"x = {FLOPS[2]:.4g}" in fit_trend(FLOPS, spoilt).notes[0]


def test_exact_data_have_no_outlier() -> None:
    """Rounding errors are no noise."""
    assert fit_power_law(FLOPS, PowerLaw(1e3, 0.15, 1.7)(FLOPS)).notes == ()
    assert fit_trend(FLOPS, PowerLaw(5.0, 0.3)(FLOPS)).notes == ()


def test_losses_on_a_line_have_no_best_rate() -> None:
    """Rounding made a parabola of them, with its vertex at the rate 0 and a loss of -5e12."""
    rates = np.geomspace(1e-4, 1e-3, 5)
    for losses in (2.5 + 0.1 * np.log(rates / 1e-3), 2.5 - 0.1 * np.log(rates / 1e-3), np.full(5, 2.5)):
        with pytest.raises(UserError, match="losses have no minimum"):
            fit_optima(np.ones(5), rates, losses)


def test_an_exponent_that_only_the_smallest_runs_tell() -> None:
    loss = 2.0 + 0.3 * (SIZES / SIZES.min()) ** -4.0 + 2085 * TOKENS**-0.3659
    (note,) = fit_chinchilla(SIZES, TOKENS, loss).notes
    assert "alpha is above 2: only the smallest N tell it" in note


def test_a_term_that_explains_nothing_has_no_numbers() -> None:
    """More tokens that do not help, or hurt, were an exponent like any other."""
    for data in (0 * TOKENS, 0.01 * np.log(TOKENS / 1e9)):
        found = fit_chinchilla(SIZES, TOKENS, 2.0 + 482 * SIZES**-0.3478 + data)
        assert math.isnan(found.B) and math.isnan(found.beta) and "does not fall with D" in found.notes[0]


def test_runs_far_from_the_law_are_named() -> None:
    """Huber's objective ignores them, so nobody would look."""
    rng = np.random.default_rng(0)
    loss = BESIROGLU(SIZES, TOKENS) * np.exp(rng.normal(0, 5e-4, len(SIZES)))
    loss[7] *= 1.05
    (note,) = fit_chinchilla(SIZES, TOKENS, loss).notes
    assert note.startswith("1 of 16 runs are far") and f"N = {SIZES[7]:.4g}, D = {TOKENS[7]:.4g}" in note


def test_resamples_that_cannot_be_fitted_are_counted() -> None:
    """With four points a resample often has fewer than three different ones, which ended the bootstrap."""
    x = np.array([1.0, 2.0, 4.0, 8.0])
    found = bootstrap(fit_power_law, x, PowerLaw(2.0, 0.5, 1.0)(x), samples=60)
    # Of 4^4 resamples 4 + 84 have one or two different points.
    share = (60 - len(found.fits)) / 60
    assert abs(share - 88 / 256) < 4 * math.sqrt(88 * 168 / 256**2 / 60)
    assert sum(found.skipped.values()) == 60 - len(found.fits)
    (note,) = found.notes
    assert note == f"{60 - len(found.fits)} of 60 resamples were skipped: This fit needs 3 different x"
    with pytest.raises(UserError, match="None of 5 resamples could be fitted"):
        bootstrap(fit_power_law, x[:2], np.array([2.0, 1.0]), samples=5)


def test_undetermined_resamples_are_counted() -> None:
    """A resample without its first point may fall at once: its exponent is no number to take quantiles of."""
    x, y = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([3.0, 2.1, 2.0, 2.0, 2.0])
    found = bootstrap(fit_power_law, x, y, samples=60)
    assert all(math.isfinite(fit.b) for fit in found) and any("at once" in why for why in found.skipped)


def test_published_constants_come_back_from_noisy_runs() -> None:
    """60 runs with half a percent of noise; the truth lies in the percentile intervals of the bootstrap."""
    rng = np.random.default_rng(1)
    n, d = np.exp(rng.uniform(18, 23.5, 60)), np.exp(rng.uniform(20.5, 26.5, 60))
    loss = BESIROGLU(n, d) * np.exp(rng.normal(0, 5e-3, 60))
    found = fit_chinchilla(n, d, loss)
    assert (found.alpha, found.beta) == pytest.approx((BESIROGLU.alpha, BESIROGLU.beta), abs=0.05)
    resampled = bootstrap(lambda *columns: fit_chinchilla(*columns), n, d, loss, samples=20)
    for name in ("E", "alpha", "beta"):
        low, high = resampled.interval(lambda fit, name=name: getattr(fit, name), 0.98)
        assert low < getattr(BESIROGLU, name) < high, name


def coverage(fit: Callable[..., PowerLaw], law: PowerLaw, x: np.ndarray, noise: float, trials: int) -> float:
    """Share of experiments whose 90% interval of b holds the truth."""
    rng, inside = np.random.default_rng(2), 0
    for trial in range(trials):
        y = law(x) * np.exp(rng.normal(0, noise, len(x)))
        low, high = bootstrap(fit, x, y, samples=40, seed=trial).interval(lambda law: law.b)
        inside += low <= law.b <= high
    return inside / trials


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Nominally 90%; resampling 24 points falls a little short of that, and so few experiments vary."""
    x = np.geomspace(1, 1000, 24)
    assert coverage(fit_trend, PowerLaw(2.0, 0.5), x, 0.05, 60) > 0.74
    assert coverage(fit_power_law, PowerLaw(2.0, 0.5, 1.0), x, 0.005, 12) > 0.5


def test_flat_resamples_are_laws_too() -> None:
    """Without them the interval of an exponent left out 0, and of rising losses it was of the few that fall."""
    x, rng = np.geomspace(1e18, 1e21, 6), np.random.default_rng(0)
    y = 3 + 0.05 * rng.standard_normal((400, 6))
    every = power_laws(x, y, np.ones_like(y))
    alone = [fit_power_law(x, one) for one in y]
    flat = np.array([law.b == 0 for law in alone])
    assert 0.3 < flat.mean() < 0.7
    assert [law.b == 0 for law in every] == flat.tolist()
    assert [law.a for law in every if law.b == 0] == pytest.approx([law.a for law in alone if law.b == 0], rel=1e-12)
