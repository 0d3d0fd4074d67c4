"""Loss curves from their learning rates: the areas of the paper, the fit, and curves that cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.annealing import areas, bounded, durbin_watson, fit_annealing, refit
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named

TRAJECTORY = law_named("trajectory")


def naive(rate: np.ndarray, delay: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 of each step by the paper's double sum (arXiv:2408.11029, equation 1), from a constant peak before."""
    before = np.r_[rate[0], rate[:-1]]
    falls = before - rate
    s2 = [sum(falls[k] * delay ** (i - k) for i in range(s + 1) for k in range(i + 1)) for s in range(len(rate))]
    return np.cumsum(rate), np.array(s2)


def wsd(steps: int = 4000, warmup: int = 200, decay: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    at = np.arange(20, steps + 1, 20, dtype=np.float64)
    return at, 2e-3 * np.minimum(at / warmup, 1.0) * np.minimum((steps - at) / decay + 0.02, 1.0)


@pytest.mark.parametrize("delay", [0.0, 0.9, 0.999])
def test_areas_are_the_papers_double_sum(delay: float):
    steps = np.arange(1.0, 61)
    rate = 1e-3 * np.where(steps < 20, 1.0, 0.5 * (1 + np.cos(np.pi * (steps - 20) / 40)))
    s1, s2, over = areas(steps, rate, delay)
    expected = naive(rate, delay)
    np.testing.assert_allclose(s1, expected[0], rtol=1e-9)
    np.testing.assert_allclose(s2, expected[1], rtol=1e-9, atol=1e-15)
    assert over.all()


def test_areas_of_some_logged_steps_are_those_of_all():
    """Where the rate is a straight line between them."""
    steps = np.arange(1.0, 101)
    rate = np.where(steps <= 40, 1e-3, 1e-3 * (100 - steps) / 60)
    s1, s2, _ = areas(steps, rate)
    some = np.array([9, 39, 59, 99])
    few = areas(steps[some], rate[some])
    np.testing.assert_allclose(few[0], s1[some], rtol=1e-9)
    np.testing.assert_allclose(few[1], s2[some], rtol=1e-9, atol=1e-12)


def test_a_warm_up_counts_as_its_peak():
    steps, rate = wsd()
    s1, s2, over = areas(steps, rate)
    flat = areas(steps, np.where(steps < 200, rate.max(), rate))
    np.testing.assert_allclose(s1, flat[0])
    np.testing.assert_allclose(s2, flat[1])
    assert not over[:9].any() and over[9:].all()


def test_factors_that_are_not_negative():
    """Scipy's nnls is the reference."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for _ in range(20):
        columns, target = rng.standard_normal((12, 3)), rng.standard_normal(12)
        found, errors = bounded(columns[None], target)
        expected, size = optimize.nnls(columns, target)
        np.testing.assert_allclose(found[0], expected, atol=1e-6)
        assert errors[0] == pytest.approx(size**2, rel=1e-6)


def curve(noise: float = 0.0, decay: int = 1200) -> Data:
    steps, rate = wsd(decay=decay)
    s1, s2, _ = areas(steps, rate)
    loss = 2.6 + 0.6 * s1**-0.5 - 0.25 * s2 + noise * np.random.default_rng(0).standard_normal(len(steps))
    return {"steps": steps, "rate": rate, "loss": loss}


def test_the_end_is_told_from_the_beginning_of_the_decay():
    data = curve(noise=0.003)
    fitted = TRAJECTORY.fit(data, {"share": 0.85, "lambda": 0.999})
    assert fitted.curve(data)[-1] == pytest.approx(
        2.6
        + 0.6 * areas(data["steps"], data["rate"])[0][-1] ** -0.5
        - 0.25 * areas(data["steps"], data["rate"])[1][-1],
        abs=0.03,
    )
    assert fitted.place is not None
    assert fitted.curve(fitted.place(4000.0))[0] == pytest.approx(fitted.curve(data)[-1])
    with pytest.raises(UserError, match="Step 5000 is not in the first run"):
        fitted.place(5000.0)


def test_before_the_decay_its_effect_is_not_known():
    data = curve(noise=0.003)
    fitted = TRAJECTORY.fit(data, {"share": 0.65})
    assert "C" not in fitted.numbers and any("give C of a similar run" in note for note in fitted.notes)
    said = fitted.curve(data)
    assert np.isnan(said[-1]) and np.isfinite(said[100])
    assert fitted.free == TRAJECTORY.fit(data, {"share": 0.65, "lambda": 0.99}).free == 3
    given = TRAJECTORY.fit(data, {"share": 0.65, "C": 0.25})
    assert given.free == 3 and TRAJECTORY.fit(data, {}).free == 5
    assert given.curve(data)[-1] == pytest.approx(data["loss"][-1], abs=0.06)


def test_steps_to_come_are_predicted_and_not_fitted():
    data = curve()
    to_come = {**data, "loss": np.where(data["steps"] > 3600, np.nan, data["loss"])}
    fitted = TRAJECTORY.fit(to_come, {})
    np.testing.assert_allclose(fitted.curve(to_come)[-20:], data["loss"][-20:], atol=1e-3)
    assert next(iter(fitted.tables.values()))[1][2] == "to come"


def test_short_curves_are_refused():
    data = curve()
    with pytest.raises(UserError, match="too short"):
        TRAJECTORY.fit({name: column[:25] for name, column in data.items()}, {})
    with pytest.raises(UserError, match="too short"):
        fit_annealing(np.linspace(1.0, 2.0, 50), np.zeros(50), np.linspace(3.0, 2.9, 50))
    with pytest.raises(UserError, match="lambda is 1"):
        TRAJECTORY.fit(data, {"lambda": 1.0})
    with pytest.raises(UserError, match="The share of a curve is 0"):
        TRAJECTORY.fit(data, {"share": 0.0})


def test_a_curve_of_another_form_is_said():
    data = curve(noise=0.002)
    bent = {**data, "loss": data["loss"] + 0.1 * np.sin(data["steps"] / 500)}
    assert any("neighbouring steps err alike" in note for note in TRAJECTORY.fit(bent, {}).notes)
    assert not any("neighbouring" in note for note in TRAJECTORY.fit(data, {}).notes)
    assert durbin_watson(np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(3.0)


def example(run: str) -> Data:
    """A real curve of docs/examples."""
    lines = (Path(__file__).parents[2] / "docs" / "examples" / run / "metrics.jsonl").read_text().splitlines()
    keys = {"steps": "step", "rate": "metric/weight_learning_rate", "loss": "metric/train_loss"}
    rows = [row for row in map(json.loads, lines) if keys["loss"] in row]
    return {symbol: np.array([float(row[key]) for row in rows]) for symbol, key in keys.items()}


@pytest.mark.parametrize(("run", "share"), [("trajectories/decay", 0.9), ("trajectories/cosine", 0.8)])
def test_ends_of_real_runs(run: str, share: float):
    """The mean of the last ten losses, which noise moves by 0.02; with lambda = 0.999 the first is 0.15 too low."""
    data = example(run)
    fitted = TRAJECTORY.fit(data, {"share": share})
    assert fitted.curve(data)[-10:].mean() == pytest.approx(data["loss"][-10:].mean(), abs=0.06)
    assert not any("do not trust" in note for note in fitted.notes)


@pytest.mark.parametrize("share", [1.0, 0.8, 0.6])
def test_a_real_run_that_the_law_does_not_describe_is_said(share: float):
    """802 steps whose loss falls faster and faster: the law makes its end up to 1.1 nats too low."""
    assert any("do not trust" in note for note in TRAJECTORY.fit(example("transformer_d8"), {"share": share}).notes)


def test_a_loss_that_falls_for_another_reason_is_said():
    """In docs/examples/transformer_d8 it falls faster and faster, and C took that up: a tenth is what decays take."""
    data = curve(noise=0.003)
    s2 = areas(data["steps"], data["rate"])[1]
    told = [TRAJECTORY.fit({**data, "loss": data["loss"] - more * s2 / s2.max()}, {}).notes for more in (0.0, 0.8)]
    assert [any("another reason" in note for note in notes) for notes in told] == [False, True]


def test_lambdas_that_fit_as_well_are_said():
    """A third of a decay tells hardly how long a fall acts, which decides the end."""
    data = curve(noise=0.003)
    assert any("fits these steps as well" in note for note in TRAJECTORY.fit(data, {"share": 0.8}).notes)
    assert not any("fits these steps as well" in note for note in TRAJECTORY.fit(data, {}).notes)


def test_what_no_interval_knows_is_said():
    data = curve(noise=0.003)
    far = TRAJECTORY.fit(data, {"share": 0.8}).notes
    assert any("the rate falls further than in the fitted steps" in note for note in far)
    short = {name: column[:100] for name, column in data.items()}
    assert any("acts for about 1000 steps" in note for note in TRAJECTORY.fit(short, {"lambda": 0.999}).notes)
    assert not any("acts for" in note for note in TRAJECTORY.fit(short, {"lambda": 0.99}).notes)
    assert any("C is of one lambda" in note for note in TRAJECTORY.fit(data, {"C": 0.25}).notes)


@pytest.mark.parametrize("delay", [0.99, 0.999])
def test_how_long_a_fall_acts_is_found(delay: float):
    """The paper's lambda is of runs of tens of thousands of steps; a wrong one extrapolates a decay wrongly."""
    data = curve()
    s1, s2, _ = areas(data["steps"], data["rate"], delay)
    s2 *= 0.2 / s2.max()  # nats
    loss = 2.6 + 0.6 * s1**-0.5 - s2 + 0.003 * np.random.default_rng(0).standard_normal(len(s1))
    found = TRAJECTORY.fit({**data, "loss": loss}, {"share": 0.9})
    assert found.numbers["lambda"] == pytest.approx(delay, abs=0.1 * (1 - delay))
    assert found.curve(data)[-1] == pytest.approx(2.4 + 0.6 * s1[-1] ** -0.5, abs=0.01)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_loss_that_does_not_fall_is_said_to_be_one():
    """A is 0 then, and its logarithm was a division by zero in every resample."""
    s1, s2 = np.geomspace(1.0, 100.0, 60), np.zeros(60)
    loss = 3 + 0.01 * np.log(s1)
    found = fit_annealing(s1, s2, loss)
    assert found.A == 0 and any("does not fall" in note for note in found.notes)
    for again in refit(found, s1, s2, np.stack([loss, loss + 0.1]), np.ones((2, 60)), False)[0]:
        np.testing.assert_allclose(again(s1, s2), again.L0)
