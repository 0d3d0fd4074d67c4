"""The error of the lowest point of a sweep of repeated runs, and of how far it moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lit_gpt.errors import UserError
from lit_gpt.scaling.sweep_moves import moves

RATES = [0.25, 0.5, 1.0, 2.0, 4.0]
BEST = {4: 1.1, 8: 0.8}
NOISE = 0.004


def sweeps(rng: np.random.Generator, seeds: int) -> dict[int, dict[tuple[float, int], float]]:
    """Parabolas around BEST; a seed moves all runs of a sweep by much more than the noise."""
    shift = 0.2 * rng.normal(size=(len(BEST), seeds))
    return {
        x: {
            (rate, seed): 2 + 0.1 * math.log(rate / best) ** 2 + shift[i, seed] + NOISE * rng.normal()
            for rate in RATES
            for seed in range(seeds)
        }
        for i, (x, best) in enumerate(BEST.items())
    }


def vertex(losses: np.ndarray) -> float:
    """ln(rate) of the lowest point of the parabola through the losses at RATES[1:4], by numpy."""
    curvature, slope, _ = np.polyfit(np.log(RATES[1:4]), losses, 2)
    return -slope / (2 * curvature)


def test_intervals_are_those_of_seeds_one_by_one_by_hand() -> None:
    """The residuals of a two-way table and a numeric derivative of numpy's parabola."""
    found, runs = moves(given := sweeps(np.random.default_rng(0), 3)), {}
    for x, of in given.items():
        runs[x] = np.array([[of[rate, seed] for seed in range(3)] for rate in RATES[1:4]])
    residual = [t - t.mean(0) - t.mean(1, keepdims=True) + t.mean() for t in runs.values()]
    free, variance = 2 * 4, sum((r**2).sum() for r in residual) / (2 * 4)
    errors = {}
    for x, table in runs.items():
        mean, eye = table.mean(1), 1e-6 * np.eye(3)
        slopes = np.array([(vertex(mean + e) - vertex(mean - e)) / 2e-6 for e in eye])
        errors[x] = math.sqrt(variance / 3 * (slopes**2).sum())
        half = stats.t.ppf(0.975, free) * errors[x]
        assert found.lowest[x].setting == pytest.approx(math.exp(vertex(mean)))
        assert found.lowest[x].interval == pytest.approx([math.exp(vertex(mean) + s * half) for s in (-1, 1)])
    assert found.moved.value == pytest.approx((vertex(runs[8].mean(1)) - vertex(runs[4].mean(1))) / math.log(2))
    assert found.moved.error == pytest.approx(math.hypot(*errors.values()) / math.log(2)) and found.moved.free == free


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, true, draws = np.random.default_rng(1), math.log2(BEST[8] / BEST[4]), 400
    found = [moves(sweeps(rng, 2)).moved for _ in range(draws)]
    held = sum(abs(moved.value - true) <= moved.half() for moved in found)
    assert abs(held / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


def test_a_seed_that_lacks_some_rates_pulls_none() -> None:
    """Its losses are all higher by 5, and it has the rates around the best one alone."""
    whole = {(rate, 0): 2 + 0.1 * math.log(rate / 1.1) ** 2 for rate in RATES}
    more = {(rate, 1): whole[rate, 0] + 5 for rate in RATES[1:3]}
    found = moves({4: {**whole, **more}})
    assert found.lowest[4].setting == pytest.approx(1.1)
    assert list(found.points[4].values()) == pytest.approx([loss + 2.5 for loss in whole.values()])


def test_one_seed_tells_no_noise_nor_do_seeds_that_no_rate_shares() -> None:
    runs = sweeps(np.random.default_rng(0), 1)
    apart = {x: {(rate, rate): loss for (rate, _), loss in of.items()} for x, of in runs.items()}
    for given in (runs, apart):
        found = moves(given)
        assert not found.moved.is_known and all(low.interval is None for low in found.lowest.values())
        assert found.moved.value == pytest.approx(moves(runs).moved.value)


def test_a_lowest_point_at_an_end_and_one_by_rounding() -> None:
    runs = {(rate, 0): rate for rate in RATES}
    found = moves({4: runs, 8: {(rate, 0): 2 + math.log(rate) ** 2 for rate in RATES}})
    assert found.lowest[4] is None and found.lowest[8].setting == pytest.approx(1.0) and found.moved is None
    assert moves({4: runs}).lowest == {4: None}
    with pytest.raises(UserError, match="no minimum"):
        moves({4: {(0.5, 0): 2 + 1e-12, (1.0, 0): 2.0, (2.0, 0): 2 + 1e-12}})
