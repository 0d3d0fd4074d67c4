"""Intervals are those of the textbook where it has any, and the fits to resamples those of another minimiser."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import chi_square_beyond
from lit_gpt.scaling.fit import PowerLaw
from lit_gpt.scaling.intervals import (
    block_length,
    draw,
    lack_of_fit,
    noise_of,
    percentiles,
    prediction,
    residuals,
    without_each,
)
from lit_gpt.scaling.law import Data, Fitted, Law
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, Chinchilla, chinchilla_problem, fit_chinchilla

TRUTH = PowerLaw(1e3, 0.15, 1.7)
POWER = law_named("power")


def ladder(sizes: int, noise: float, seed: int = 0, repeats: int = 1) -> Data:
    x = np.repeat(np.geomspace(1e18, 3e20, sizes), repeats)
    return {"x": x, "y": TRUTH(x) + np.random.default_rng(seed).normal(0, noise, len(x))}


def _line() -> Law:
    """y = a + b x: linear, so that Student's t is exact."""

    def fit(data: Data, fixed: object) -> Fitted:
        b, a = np.polyfit(data["x"], data["y"], 1)
        return Fitted({"a": float(a), "b": float(b)}, lambda at: a + b * at["x"], 2)

    return Law("A line.", "y = a + b x", {"x": "flops", "y": "loss"}, {"a": "level", "b": "slope"}, fit)


def test_resamples_of_chinchilla_are_those_of_bfgs() -> None:
    """Thirty bootstrap samples of 240 runs like those of the published replication, to a millionth."""
    scipy = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(17.9, 23.5, 240)), np.exp(rng.uniform(20.5, 26.5, 240))
    loss = BESIROGLU(n, d) * np.exp(rng.laplace(0, 0.005, 240))  # about as far from the law as the published runs
    full = fit_chinchilla(n, d, loss)
    counts = rng.multinomial(240, np.full(240, 1 / 240), 30).astype(float)
    problem = chinchilla_problem(n, d, {})
    found = problem.refit(problem.fit(loss), np.tile(loss, (30, 1)), counts)
    for law, count in zip(found, counts):
        data = (np.log(n), np.log(d), np.log(loss), count)
        theirs = scipy.minimize(_objective, _point(full), data, method="BFGS", jac=True, options={"gtol": 1e-10})
        np.testing.assert_allclose(_point(law), theirs.x, atol=1e-6)


def _point(law: Chinchilla) -> np.ndarray:
    return np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta])


def _objective(
    point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray, count: np.ndarray
) -> tuple[float, np.ndarray]:
    """The replication's objective and its gradient, written for one point."""
    a, b, e, alpha, beta = point
    terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])
    whole = np.logaddexp.reduce(terms)
    share, left = np.exp(terms - whole), whole - ln_loss
    pull = count * np.clip(left, -1e-3, 1e-3)
    value = np.where(np.abs(left) < 1e-3, left**2 / 2, 1e-3 * (np.abs(left) - 1e-3 / 2))
    slopes = np.stack([share[0], share[1], share[2], -share[0] * ln_n, -share[1] * ln_d])
    return float(count @ value), slopes @ pull


def test_intervals_of_a_line_are_students() -> None:
    """With five runs a normal interval would be 30% too narrow."""
    stats = pytest.importorskip("scipy.stats")
    law, x = _line(), np.arange(5.0) + 1
    data = {"x": x, "y": 3 - 0.2 * x + np.random.default_rng(3).normal(0, 0.1, 5)}
    fitted = law.fit(data, {})
    noise = noise_of(law, fitted, data)
    drawn = draw(law, fitted, data, {}, noise, samples=8000)
    theirs = stats.linregress(x, data["y"])
    half = stats.t.ppf(0.95, 3) * theirs.stderr
    low, high = drawn.intervals()["b"]
    assert (low, high) == pytest.approx((theirs.slope - half, theirs.slope + half), abs=0.06 * half)
    low_y, high_y = prediction(law, drawn, {"x": np.array([8.0])})
    width = stats.t.ppf(0.95, 3) * noise.size * math.sqrt(1 + 1 / 5 + (8 - 3) ** 2 / 10)
    assert (high_y[0] - low_y[0]) / 2 == pytest.approx(width, rel=0.06)


def test_few_draws_promise_no_less_than_many() -> None:
    """A value like 19 others is outside of all of them in 2 of 20 cases; numpy's usual quantiles are inside of them."""
    assert percentiles(np.arange(19.0), 0.9) == pytest.approx((0.0, 18.0))
    every = np.random.default_rng(0).standard_normal((4000, 40))
    ends = np.array([percentiles(row[1:], 0.9) for row in every])
    assert np.mean((ends[:, 0] < every[:, 0]) & (every[:, 0] < ends[:, 1])) == pytest.approx(0.9, abs=0.015)


def test_blocks_are_as_long_as_the_correlation_asks_for() -> None:
    """Of 400 steps: one where neighbours differ, and more the more alike they are."""
    rng, lengths = np.random.default_rng(0), list[int]()
    for r in (0.0, 0.5, 0.9):
        left = rng.standard_normal(400)
        for i in range(1, 400):
            left[i] += r * left[i - 1]
        lengths.append(block_length(left))
    assert lengths[0] <= 3 < lengths[1] < lengths[2] <= 100


def test_predictions_hold_new_runs() -> None:
    """At seven times the largest compute; nominally 90% of 40, of which fewer than 29 come once in 500."""
    inside = 0
    for seed in range(40):
        data = ladder(6, 0.004, seed)
        fitted = POWER.fit(data, {})
        drawn = draw(POWER, fitted, data, {}, noise_of(POWER, fitted, data), samples=150, seed=seed)
        low, high = prediction(POWER, drawn, {"x": np.array([2e21])})
        inside += bool(low[0] < float(TRUTH(2e21)) + np.random.default_rng(seed + 99).normal(0, 0.004) < high[0])
    assert inside >= 29


def test_lack_of_fit_is_the_f_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    data = ladder(6, 0.003, repeats=3)
    fitted = POWER.fit(data, {})
    left = residuals(POWER, fitted, data).reshape(6, 3)
    pure = ((left - left.mean(1, keepdims=True)) ** 2).sum()
    f = ((left**2).sum() - pure) / (6 - 3) / (pure / 12)
    found = lack_of_fit(POWER, fitted, data)
    assert found is not None and found.pure == pytest.approx(math.sqrt(pure / 12))
    assert found.chance == pytest.approx(stats.f.sf(f, 3, 12), abs=2e-3)


def test_a_law_that_misses_is_said() -> None:
    """A law without the offset misses by far more than three seeds differ; one run per place cannot tell."""
    data = ladder(6, 0.002, repeats=3)
    wrong = POWER.fit(data, {"c": 0.0})
    found = lack_of_fit(POWER, wrong, data)
    assert found is not None and found.chance < 1e-3 and "misses more than noise" in found.words
    single = ladder(6, 0.002)
    fitted = POWER.fit(single, {})
    assert lack_of_fit(POWER, fitted, single) is None
    given = lack_of_fit(POWER, fitted, single, noise=0.002)
    assert given is not None and given.chance > 0.001 and "given noise 0.002" in given.words
    copies = {name: np.repeat(column, 3) for name, column in single.items()}
    assert lack_of_fit(POWER, POWER.fit(copies, {}), copies) is None, "runs of one seed rejected every law"


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 41])
def test_the_chi_square_distribution(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for value in (0.0, 0.3, freedom, 3.0 * freedom):
        assert chi_square_beyond(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-9)


def test_where_noise_comes_from() -> None:
    """A given noise counts unless the law misses by more; three runs of a law of three numbers have none."""
    data = ladder(7, 0.003)
    fitted = POWER.fit(data, {})
    assert noise_of(POWER, fitted, data, 0.003).freedom == math.inf
    assert noise_of(POWER, fitted, data, 1e-6).size > 1e-4
    three = {symbol: column[::3] for symbol, column in data.items()}
    exact = POWER.fit(three, {})
    with pytest.raises(UserError, match="say nothing of the noise"):
        draw(POWER, exact, three, {}, noise_of(POWER, exact, three))
    assert draw(POWER, exact, three, {}, noise_of(POWER, exact, three, 0.003), samples=20).fits


def test_one_run_that_decides() -> None:
    data = ladder(6, 0.0)
    data["y"][3] += 0.1
    fitted = POWER.fit(data, {})
    offsets = [fit.numbers["c"] for fit in without_each(POWER, fitted, data, {}) if fit is not None]
    assert len(offsets) == 6 and offsets[3] == pytest.approx(1.7, abs=1e-3) and abs(offsets[0] - 1.7) > 0.01


def test_many_runs_are_drawn_with_replacement() -> None:
    """The interval is about as wide as that of new noise, which knows that the noise is Gaussian."""
    data = ladder(40, 0.003)
    fitted = POWER.fit(data, {})
    noise = noise_of(POWER, fitted, data)
    drawn = draw(POWER, fitted, data, {}, noise, samples=200)
    other = draw(dataclasses.replace(POWER, designed=True), fitted, data, {}, noise, samples=200)
    assert "40 runs drawn with replacement" in drawn.way and "new noise" in other.way
    (low, high), (low_too, high_too) = drawn.intervals()["b"], other.intervals()["b"]
    assert low < fitted.numbers["b"] < high and 0.5 < (high - low) / (high_too - low_too) < 2


def test_a_fit_with_fewer_numbers_is_none() -> None:
    """Two sweeps of three rates: without any run there is one optimum, and no law over sizes."""
    law, x = law_named("best_rate"), np.repeat([1e9, 1e10], 3)
    best, rate = 24.0 * x**-0.3, np.tile([0.02, 0.04, 0.08], 2)
    data = {"x": x, "rate": rate, "loss": 3 + 0.1 * np.log(rate / best) ** 2}
    fitted = law.fit(data, {})
    assert fitted.numbers.keys() >= {"a", "b"}
    assert without_each(law, fitted, data, {}) == [None] * 6


@pytest.mark.parametrize("freedom", [1500, 1501, 20000])
def test_the_chi_square_distribution_of_many_points(freedom: int) -> None:
    """Thousands of logged steps: e^-half is 0 there, and every law missed "by more than the given noise"."""
    stats = pytest.importorskip("scipy.stats")
    for value in (0.0, 0.98 * freedom, freedom, 1.05 * freedom):
        assert chi_square_beyond(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-8, abs=1e-12)
