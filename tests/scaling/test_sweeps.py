"""Optima of sweeps: where they lie, how sure that is, what is left out, and what is said of it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.laws.ema_timescale import best_decay, timescale
from lit_gpt.scaling.noise import student
from lit_gpt.scaling.sweeps import fit_optima, refit


def sweeps(xs: np.ndarray, span: float = 1.2, runs: int = 5, noise: float = 0.0) -> Data:
    """HyperP's rates, 24.27 x^-0.32."""
    x = np.repeat(xs, runs)
    best = 24.27 * x**-0.32
    rate = best * np.tile(np.exp(np.linspace(-span, span, runs)), len(xs))
    loss = 2.5 + 0.03 * np.log(rate / best) ** 2 + noise * np.random.default_rng(0).standard_normal(len(x))
    return {"x": x, "rate": rate, "loss": loss}


TOKENS = 1e10 * 2.0 ** np.arange(4)


def test_an_optimum_is_that_of_the_parabola_of_numpy():
    data = sweeps(TOKENS, noise=0.002)
    found = fit_optima(data["x"], data["rate"], data["loss"])
    for i, optimum in enumerate(found.optima):
        here = slice(5 * i, 5 * i + 5)
        curvature, slope, level = np.polyfit(np.log(data["rate"][here]), data["loss"][here], 2)
        lowest = np.exp(-slope / (2 * curvature)), level - slope**2 / (4 * curvature)
        assert (optimum.best, optimum.loss, optimum.curvature) == pytest.approx((*lowest, curvature))
    assert found.freedom == 4 * 2


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_of_the_loss_change_nothing(unit: float):
    data = sweeps(TOKENS[:1])
    (one,) = fit_optima(data["x"], data["rate"], data["loss"] * unit).optima
    assert (one.best, one.loss / unit) == pytest.approx((24.27 * TOKENS[0] ** -0.32, 2.5))


def test_the_interval_of_an_optimum_holds_it():
    """95% by the delta method and Student's t; fewer than 80 of 100 by chance once in a million times."""
    data, held = sweeps(TOKENS[:1], runs=8), 0
    truth, rng = 24.27 * TOKENS[0] ** -0.32, np.random.default_rng(1)
    losses = data["loss"] + 0.002 * rng.standard_normal((100, 8))
    for one in refit(data["x"], data["rate"], losses, np.ones_like(losses)):
        half = student(one.freedom) * one.noise * one.optima[0].spread
        held += abs(np.log(one.optima[0].best / truth)) < half
    assert held >= 80


def test_a_line_weighs_optima_by_their_precision():
    """The naive weighted line of numpy.polyfit through the same optima."""
    data = sweeps(TOKENS, noise=0.003)
    kept = np.ones(len(data["x"]), dtype=bool)
    kept[[1, 3]] = False  # a sweep of three runs says less
    x, rate, loss = (data[name][kept] for name in ("x", "rate", "loss"))
    found = fit_optima(x, rate, loss)
    slope, level = np.polyfit(
        np.log([o.x for o in found.optima]),
        np.log([o.best for o in found.optima]),
        1,
        w=[1 / o.spread for o in found.optima],
    )
    assert (found.b, found.a) == pytest.approx((slope, np.exp(level)), rel=1e-6)


def test_sweeps_that_do_not_bracket_their_optimum_are_left_out():
    data = sweeps(TOKENS)
    rate = data["rate"].copy()
    rate[:5] *= 0.2  # the whole first sweep lies below its optimum
    data["loss"][:5] = 2.5 + 0.03 * np.log(rate[:5] / (24.27 * TOKENS[0] ** -0.32)) ** 2
    found = fit_optima(data["x"], rate, data["loss"])
    assert [o.inside for o in found.optima] == [False, True, True, True]
    assert found.b == pytest.approx(-0.32)
    assert "lies outside the sweep" in found.notes[-1] and "widen the sweep" in found.notes[-1]


def test_a_sweep_without_a_minimum_is_said():
    data = sweeps(TOKENS)
    data["loss"][:5] = 3 - 0.1 * np.arange(5.0)
    found = fit_optima(data["x"], data["rate"], data["loss"])
    assert len(found.optima) == 3 and "the losses have no minimum" in found.notes[-1]
    assert np.isnan(found.loss(data["x"], data["rate"])[:5]).all()
    with pytest.raises(UserError, match="No sweep has a minimum: at x = 1e\\+10 there are 2 different settings"):
        fit_optima(data["x"][:2], data["rate"][:2], data["loss"][:2])


def test_few_optima_are_no_law_but_are_told():
    data = sweeps(TOKENS[:1])
    fitted = law_named("best_rate").fit(data, {})
    assert fitted.numbers == {"best": pytest.approx(24.27 * 1e10**-0.32)}
    assert any("needs 2 sweeps" in note for note in fitted.notes)
    two = sweeps(TOKENS[:2])
    assert any("goes through any two" in note for note in law_named("best_rate").fit(two, {}).notes)


def test_optima_beside_a_power_law_are_said():
    data = sweeps(TOKENS, noise=1e-4)
    moved = np.where(data["x"] == TOKENS[1], 1.4, 1.0)
    notes = fit_optima(data["x"], data["rate"] * moved, data["loss"]).notes
    assert any("lie further from a power law than noise explains" in note for note in notes)
    assert not any("lie further" in note for note in fit_optima(data["x"], data["rate"], data["loss"]).notes)


def test_budgets_that_a_batch_rounds_are_one_sweep():
    data = sweeps(TOKENS)
    rounded = data["x"] * np.tile([1, 1.003, 0.997, 1.001, 1], 4)
    found = fit_optima(rounded, data["rate"], data["loss"])
    assert len(found.optima) == 4 and found.b == pytest.approx(-0.32, abs=2e-3)


def test_a_constant_is_known_or_found():
    x = np.repeat(np.geomspace(1e9, 1e12, 7), 5)
    best = 1e4 * x**-0.65 + 2e-3
    rate = best * np.tile(np.exp(np.linspace(-1, 1, 5)), 7)
    loss = 2.5 + 0.03 * np.log(rate / best) ** 2
    known = fit_optima(x, rate, loss, constant=2e-3)
    assert (known.a, known.b, known.c) == pytest.approx((1e4, -0.65, 2e-3), rel=1e-4)
    found = fit_optima(x, rate, loss, constant=None)
    assert (found.b, found.c) == pytest.approx((-0.65, 2e-3), rel=1e-2)
    with pytest.raises(UserError, match="The constant 1 is not below"):
        fit_optima(x, rate, loss, constant=1.0)


def test_the_best_decay_has_the_best_timescale():
    """Power Lines: lambda = B TPP^0.527 / (1.084 eta D), and the best timescale at 20 tokens each is about 0.21."""
    size, tokens, batch, rate = 610e6, 12.2e9, 2.0**20, 0.01
    decay = best_decay(batch, rate, tokens, size)
    assert decay == pytest.approx(batch * 20**0.527 / (1.084 * rate * tokens), rel=1e-9)
    columns = {"batch": batch, "rate": rate, "decay": decay, "tokens": tokens}
    found = timescale({name: np.array([value]) for name, value in columns.items()})[0]
    assert found == pytest.approx(1.084 * 20**-0.527)
    assert found == pytest.approx(0.21, abs=0.03)


def test_sweeps_of_one_x_have_no_law_and_no_warning_of_numpy():
    """Whoever drew rates over one batch read "RuntimeWarning: overflow encountered in exp", with a line of our code."""
    data = sweeps(np.array([1000.0]))
    losses = data["loss"] + 0.05 * np.random.default_rng(0).standard_normal((200, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refit(data["x"], data["rate"], losses, np.ones_like(losses))
