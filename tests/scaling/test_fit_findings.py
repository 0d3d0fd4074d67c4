"""No number of a fit looks like a finding when the data hold none, whatever their units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import by_chance
from lit_gpt.scaling.fit import (
    PowerLaw,
    fit_power_law,
    fit_trend,
)
from lit_gpt.scaling.intervals import bootstrap
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, Chinchilla, fit_chinchilla
from lit_gpt.scaling.sweeps import fit_optima

X = np.geomspace(1e8, 1e11, 8)
RATES = np.geomspace(1e-4, 1e-2, 5)
SIZES, TOKENS = (m.ravel() for m in np.meshgrid(np.geomspace(1e8, 1e10, 4), np.geomspace(1e9, 1e11, 4)))


def noise(seed: int, count: int, size: float = 0.01) -> np.ndarray:
    return 2 + np.random.default_rng(seed).normal(0, size, count)


def test_the_test_of_chance_is_the_f_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for parameters in (1, 2, 4):
        for freedom in (1, 3, 11):
            for share in (1e-7, 0.01, 0.3, 0.95):
                f = (1 - share) / parameters / (share / freedom)
                expected = stats.f.sf(f, parameters, freedom)
                assert by_chance(share, 1.0, parameters, freedom) == pytest.approx(expected, rel=1e-6)


def test_noise_is_no_law() -> None:
    """Half of all noise falls a little, and came back as a law."""
    quiet = {"law": 0, "trend": 0}
    for seed in range(60):
        quiet["law"] += fit_power_law(X, noise(seed, 8)).notes == ()
        quiet["trend"] += fit_trend(X, noise(seed, 8)).notes == ()
    assert all(count <= 9 for count in quiet.values()), quiet  # 5% of 60 are 3
    for seed in range(20):
        assert fit_power_law(X, PowerLaw(1e3, 0.3, 1.5)(X) + noise(seed, 8) - 2).notes == ()


def test_as_many_runs_as_numbers_are_no_test() -> None:
    """Any three falling losses are on a power law, without a word."""
    assert "3 runs are no test of 3 numbers" in fit_power_law(X[:3], np.array([3.0, 2.5, 2.2])).notes[0]
    assert "2 runs are no test of 2 numbers" in fit_trend(X[:2], np.array([3.0, 2.5])).notes[0]


@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1e30, 1e150])
def test_units_change_nothing(unit: float) -> None:
    """Losses of 1e-200 "do not fall", and squares of 1e200 were infinite."""
    law = PowerLaw(1e3, 0.3, 1.5)
    found = fit_power_law(X, law(X) * unit)
    assert (found.a / unit, found.b, found.c / unit) == pytest.approx((1e3, 0.3, 1.5), rel=1e-6)
    assert fit_power_law(X * unit, law(X)).b == pytest.approx(0.3, rel=1e-6)


def test_a_factor_that_is_no_float_is_an_error() -> None:
    """It was 0: a law that is its floor everywhere."""
    with pytest.raises(UserError, match="Give x in another unit"):
        fit_power_law(X * 1e-200, PowerLaw(1e30, 3.0, 1e-5)(X))


def test_losses_that_hardly_bend_have_no_best_rate() -> None:
    """The rate at the vertex overflowed: a traceback."""
    with pytest.raises(UserError, match="losses have no minimum"):
        fit_optima(np.ones(5), RATES, np.array([2.0, 2.01, 2.02, 2.03, 2.04001]))


def test_words_are_no_numbers() -> None:
    for bad in (["a", "b", "c"], [[1], [2, 3], [4]]):
        with pytest.raises(UserError, match="one number of each kind per run"):
            fit_power_law(bad, np.array([3.0, 2.0, 1.0]))  # type: ignore[arg-type]


def test_chinchilla_in_other_units() -> None:
    """Losses a million times as large had no numbers, and were said not to fall."""
    found = fit_chinchilla(SIZES, TOKENS, BESIROGLU(SIZES, TOKENS) * 1e6)
    assert found.notes == ()
    assert (found.E / 1e6, found.alpha, found.beta) == pytest.approx((1.8169, 0.3478, 0.3659), rel=1e-4)


def test_a_constant_loss_is_e() -> None:
    """Equal losses of 3 had E = 1: the rest was in terms that were said not to be determined."""
    found = fit_chinchilla(SIZES, TOKENS, np.full(16, 3.0))
    assert abs(found.E - 3.0) < 1e-6 and math.isnan(found.alpha) and math.isnan(found.beta)


def test_runs_that_leave_the_law_open() -> None:
    """Five noise-free runs of which one follows from three others gave alpha 0.79 where the truth was 0.34."""
    chosen = [0, 1, 4, 5, 10]
    truth = Chinchilla(406.4, 410.7, 1.69, 0.34, 0.28)
    found = fit_chinchilla(SIZES[chosen], TOKENS[chosen], truth(SIZES, TOKENS)[chosen])
    assert math.isnan(found.alpha) and math.isnan(found.E)
    assert any("leave the five numbers open" in note for note in found.notes)


def test_gaussian_noise_has_no_runs_far_from_the_law() -> None:
    """Huber's fit goes through five runs, so the median residual was too small, and honest runs were accused."""
    for seed in range(6):
        loss = BESIROGLU(SIZES, TOKENS) * np.exp(np.random.default_rng(seed).normal(0, 0.01, 16))
        assert not [note for note in fit_chinchilla(SIZES, TOKENS, loss).notes if "far" in note]


def test_noise_is_no_chinchilla_law() -> None:
    """It may have exponents of 0.004 and 0.009, without a word."""
    for seed in (5, 6, 7):
        assert fit_chinchilla(SIZES, TOKENS, noise(seed, 16)).notes


def test_arguments_of_the_bootstrap() -> None:
    """ "None of 0 resamples could be fitted: . Add runs." and a traceback of numpy."""
    with pytest.raises(UserError, match="samples of 1 or more"):
        bootstrap(fit_power_law, X, PowerLaw(1e3, 0.3, 1.5)(X), samples=0)
    found = bootstrap(fit_trend, X, PowerLaw(1e3, 0.3)(X), samples=3)
    with pytest.raises(UserError, match="between 0 and 1"):
        found.interval(lambda law: law.b, 90)
