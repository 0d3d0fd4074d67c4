"""Rates are added where the optimum is not bracketed or not known well enough, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lit_gpt.lab.refine import Refine, added_rates, next_rates, width_of
from lit_gpt.lab.rows import Row


def parabola(rates: Sequence[float], best: float = 0.01, noise: Sequence[float] = ()) -> Mapping[float, list[float]]:
    noise = noise or [0.0] * len(rates)
    return {rate: [2 + 0.1 * math.log(rate / best) ** 2 + wrong] for rate, wrong in zip(rates, noise)}


GRID = [0.0025, 0.005, 0.01, 0.02, 0.04]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.02, 0.04], [0.01]),
        ([0.0025, 0.005], [0.01]),
        ([0.01], [0.005, 0.02]),
        (GRID, []),
        ([0.005, 0.01, 0.02], [0.007071, 0.01414]),  # three points leave nothing to tell the width by
    ],
)
def test_where_the_next_rate_lies(rates: list[float], expected: list[float]) -> None:
    assert next_rates(parabola(rates), Refine(factor=2.0)) == pytest.approx(expected, rel=1e-3)


def test_a_diverged_rate_bounds_the_optimum() -> None:
    points = {**parabola([0.005, 0.01]), 0.02: [math.inf]}
    assert next_rates(points, Refine(factor=2.0)) == pytest.approx([0.007071, 0.01414], rel=1e-3)
    assert next_rates({0.01: [math.inf], 0.02: [math.inf]}, Refine(factor=2.0)) == [0.005]


def test_the_width_is_that_of_fits_that_leave_one_rate_out() -> None:
    """Against numpy's polynomials, in powers of two."""
    points = parabola(GRID, noise=[0.01, -0.02, 0.0, 0.015, -0.01])
    x, y = np.log2(GRID), np.array([points[rate][0] for rate in GRID])
    vertices = [np.polyfit(x, y, 2)] + [np.polyfit(np.delete(x, i), np.delete(y, i), 2) for i in range(5)]
    found = [-slope / (2 * curvature) for curvature, slope, _ in vertices]
    assert width_of(points, 0.01) == pytest.approx(max(found) - min(found), rel=1e-6)


def row(rate: float, seed: int = 0, depth: int = 8) -> Row:
    return Row(f"d{depth}_{rate}_{seed}", {"depth": depth, "base_hps.eta0": rate, "seed": seed, "ar": rate})


def test_groups_are_refined_by_themselves_and_never_beyond_their_limit() -> None:
    refine = Refine(factor=2.0, runs=2, derived=("ar",))
    rows = [row(rate, seed, depth) for depth in (4, 8) for rate in (0.02, 0.04) for seed in (0, 1)]
    losses: dict[str, float | None] = {r.name: float(r.options["base_hps.eta0"]) for r in rows}
    found = added_rates(rows, [], losses, refine)
    assert [(copied.options["depth"], copied.options["seed"], rate) for copied, rate in found] == [
        (depth, seed, 0.01) for depth in (4, 8) for seed in found_seeds(found, depth)
    ]
    assert len(found) == 4
    added = [row(rate, seed, 8) for rate in (0.01, 0.005) for seed in (0, 1)]
    done = {**losses, **{r.name: float(r.options["base_hps.eta0"]) for r in added}}
    assert {copied.options["depth"] for copied, _ in added_rates(rows, added, done, refine)} == {4}


def found_seeds(found: Sequence[tuple[Row, float]], depth: int) -> list[int]:
    return [copied.options["seed"] for copied, _ in found if copied.options["depth"] == depth]


def test_a_group_waits_for_its_last_run_and_stays_where_one_failed() -> None:
    rows, refine = [row(0.02), row(0.04)], Refine(derived=("ar",))
    assert not added_rates(rows, [], {rows[0].name: 2.0}, refine)
    assert not added_rates(rows, [], {rows[0].name: 2.0, rows[1].name: None}, refine)
