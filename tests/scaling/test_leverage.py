"""Compute leverage: right for known laws, its interval holds the truth, and a baseline that never gets there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lit_gpt.scaling.intervals import draw, noise_of
from lit_gpt.scaling.law import Data, Fitted
from lit_gpt.scaling.laws.power import LAW
from lit_gpt.scaling.leverage import Leverage, Resampled, compute_leverage

FLOPS = np.repeat(np.geomspace(1e18, 1e21, 5), 3)
END = np.array([1e21])


def runs(speed_up: float, rng: np.random.Generator) -> Data:
    return {"x": FLOPS, "y": 1e3 * (speed_up * FLOPS) ** -0.15 + 1.7 + rng.normal(0, 0.003, len(FLOPS))}


def leverage(base: Data, other: Data, level: float = 0.9) -> Leverage:
    fits = [LAW.fit(data, {}) for data in (base, other)]
    sizes = [noise_of(LAW, fit, data) for fit, data in zip(fits, (base, other))]
    draws = [
        Resampled(draw(LAW, fit, data, {}, replace(size, freedom=math.inf), 100, seed).fits, size.freedom)
        for seed, (fit, data, size) in enumerate(zip(fits, (base, other), sizes))
    ]
    return compute_leverage(fits[0], fits[1], END, (draws[0], draws[1]), level)


def law(a: float, b: float, c: float) -> Fitted:
    return Fitted({"a": a, "b": b, "c": c}, lambda data: a * data["x"] ** -b + c, 3)


def test_laws_that_differ_in_compute_alone_have_one_leverage_everywhere() -> None:
    base, fast = law(1e3, 0.15, 1.7), law(1e3 * 2.0**-0.15, 0.15, 1.7)
    found = compute_leverage(base, fast, np.geomspace(1e18, 1e24, 5), None, 0.9)
    assert found.value == pytest.approx(2.0) and np.isnan(found.low).all()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Draws of both ladders with the same noise gave intervals of a quarter of the right width."""
    rng, inside, ties = np.random.default_rng(0), 0, 0
    for _ in range(30):
        found = leverage(runs(1.0, rng), runs(1.0, rng))
        inside += int(found.low[0] <= 1.0 <= found.high[0])
        ties += int(found.tie[0])
    assert inside >= 22, "90% of 30 are 27, with a standard deviation of 1.6"
    assert ties >= 25, "its 95% interval holds 1 in 28"


def test_with_little_noise_it_is_welchs_interval() -> None:
    """The fits are then linear in the losses: Student's t of scipy, with slopes by finite differences, to a tenth.

    Noises of unlike sizes, from two and four degrees of freedom.
    """
    t = pytest.importorskip("scipy.stats").t
    rng, data = np.random.default_rng(3), list[Data]()
    for count, noise in ((5, 1e-5), (7, 2e-5)):
        x = np.geomspace(1e18, 1e21, count)
        data.append({"x": x, "y": 1e3 * x**-0.15 + 1.7 + rng.normal(0, noise, count)})
    fits = [LAW.fit(one, {}) for one in data]
    sizes = [noise_of(LAW, fit, one) for fit, one in zip(fits, data)]
    draws = [
        Resampled(draw(LAW, fit, one, {}, replace(size, freedom=math.inf), 4000, seed).fits, size.freedom)
        for seed, (fit, one, size) in enumerate(zip(fits, data, sizes))
    ]
    found = compute_leverage(fits[0], fits[1], END, (draws[0], draws[1]), 0.9)

    def ln_leverage(side: int, run: int, by: float) -> float:
        moved = {**data[side], "y": data[side]["y"] + by * (np.arange(len(data[side]["y"])) == run)}
        both = [LAW.fit(moved, {}) if side == i else fit for i, fit in enumerate(fits)]
        return math.log(compute_leverage(both[0], both[1], END, None, 0.9).value[0])

    variances = [
        size.size**2 * sum(((ln_leverage(side, run, 1e-6) - ln_leverage(side, run, -1e-6)) / 2e-6) ** 2
                           for run in range(len(data[side]["y"])))
        for side, size in enumerate(sizes)
    ]  # fmt: skip
    free = sum(variances) ** 2 / sum(v**2 / size.freedom for v, size in zip(variances, sizes))
    half = t.ppf(0.95, free) * math.sqrt(sum(variances))
    ends = np.log(np.array([found.low[0], found.high[0]]) / found.value[0])
    np.testing.assert_allclose(ends, [-half, half], rtol=0.1)


def test_a_loss_below_the_baselines_offset_is_never_reached() -> None:
    found = compute_leverage(law(1e3, 0.15, 2.5), law(1e3, 0.15, 1.0), END, None, 0.9)
    assert found.value[0] == np.inf
    flat = compute_leverage(law(3.0, 0.0, 0.0), law(1e3, 0.15, 1.0), END, None, 0.9)
    assert np.isnan(flat.value[0])


def test_resamples_that_never_get_there_leave_the_interval_open() -> None:
    base, other = law(1e3, 0.15, 1.7), law(1e3 * 2.0**-0.15, 0.15, 1.7)
    never = law(1e3, 0.15, 2.6)
    found = compute_leverage(
        base, other, END, (Resampled([base] * 8 + [never] * 2, 2), Resampled([other] * 10, 2)), 0.9
    )
    assert found.high[0] == np.inf and found.low[0] == pytest.approx(2.0) and not found.tie[0]
