"""Sweeps and budgets whose runs are no parabola: a run that diverged, and a side that is steeper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.sweeps import fit_optima

TOKENS = np.repeat(1e10 * 2.0 ** np.arange(4), 6)
BEST = 24.27 * TOKENS**-0.32
RATES = BEST * np.tile(np.exp(np.linspace(-1.6, 1.8, 6)), 4)


def losses(shape: Callable[[np.ndarray], np.ndarray], seed: int = 0, noise: float = 0.001) -> np.ndarray:
    return 3 + shape(np.log(RATES / BEST)) + noise * np.random.default_rng(seed).standard_normal(len(RATES))


def parabola(away: np.ndarray) -> np.ndarray:
    return 0.04 * away**2


def steeper(away: np.ndarray) -> np.ndarray:
    return 0.04 * np.where(away < 0, away**2, 4 * away**2)


@pytest.mark.parametrize("diverged", [3.2, 3.6, 9.0])
def test_a_run_that_diverged_at_the_edge_of_a_sweep_is_named(diverged: float) -> None:
    """It leaves the sweep its minimum, in another place, and takes the exponent from -0.32 to as much as -0.17."""
    loss = losses(parabola)
    loss[5] = diverged
    found = fit_optima(TOKENS, RATES, loss)
    assert found.optima[0].inside
    (note,) = found.notes
    assert f"x = 1e+10, setting = {RATES[5]:.4g}, loss = {diverged:g} (" in note and "outlier" in note


def test_a_steeper_side_is_said_as_it_moves_the_optima() -> None:
    found = fit_optima(TOKENS, RATES, losses(steeper))
    assert abs(np.log(found.optima[0].best / BEST[0])) > 0.2
    (note,) = found.notes
    assert "faster towards large settings" in note
    (note,) = fit_optima(TOKENS, 1 / RATES, losses(steeper)).notes
    assert "faster towards small settings" in note


def test_noise_alone_is_no_shape() -> None:
    """Both tests have a level of 1%: more than 14 of 200 by chance less than once in ten thousand times."""
    said = [fit_optima(TOKENS, RATES, losses(parabola, seed)).notes for seed in range(200)]
    assert sum(map(len, said)) <= 14


def test_the_cubic_term_is_judged_as_a_naive_regression_does() -> None:
    """numpy.linalg.lstsq of all parabolas together, with the cube as one more column, and the F test of scipy."""
    stats = pytest.importorskip("scipy.stats")
    ln_rate, groups = np.log(RATES), np.arange(len(RATES)) // 6
    for bend in (0.0, 0.0003, 0.0006, 0.0012, 0.003):
        loss = losses(lambda away, bend=bend: parabola(away) + bend * away**3, noise=0.003)
        each = [np.where(groups == i, ln_rate - ln_rate[groups == i].mean(), 0.0) for i in range(4)]
        columns = [np.where(groups == i, each[i] ** power, 0.0) for i in range(4) for power in range(3)]
        cube = np.sum([away**3 for away in each], 0)
        without, with_cube = (
            float(np.linalg.lstsq(np.stack(design, 1), loss, rcond=None)[1][0])
            for design in (columns, [*columns, cube])
        )
        chance = stats.f.sf((without - with_cube) / (with_cube / 11), 1, 11)
        assert (chance < 0.01) == any("faster" in note for note in fit_optima(TOKENS, RATES, loss).notes), bend


def test_exact_losses_have_no_shape() -> None:
    assert fit_optima(TOKENS, RATES, losses(parabola, noise=0.0)).notes == ()


def budgets(noise: float = 0.002) -> Data:
    flops = np.repeat(np.geomspace(1e18, 1e20, 4), 5)
    size = 0.1 * flops**0.5 * np.tile(np.exp(np.linspace(-1.4, 1.4, 5)), 4)
    loss = 1e3 * flops**-0.15 + 1.7 + 0.05 * np.log(size / (0.1 * flops**0.5)) ** 2
    loss = loss + noise * np.random.default_rng(0).standard_normal(20)
    return {"C": flops, "N": size, "D": flops / (6 * size), "L": loss}


def test_a_run_that_stands_apart_in_an_isoflop_study_is_named() -> None:
    data = budgets()
    data["L"][9] += 0.2
    (note,) = law_named("isoflop").fit(data, {}).notes
    assert f"C = {data['C'][9]:.4g}, N = {data['N'][9]:.4g}, L = {data['L'][9]:.4g}" in note and "outlier" in note
    assert law_named("isoflop").fit(budgets(), {}).notes == ()


def test_an_offset_above_the_least_loss_is_refused() -> None:
    with pytest.raises(UserError, match="The offset 3 is not below every least loss"):
        law_named("isoflop").fit(budgets(), {"c": 3.0})


def test_one_budget_asks_for_another_and_not_for_sizes() -> None:
    data = {name: column[:5] for name, column in budgets().items()}
    with pytest.raises(UserError, match="Add runs of other budgets; those less than"):
        law_named("isoflop").fit(data, {})
