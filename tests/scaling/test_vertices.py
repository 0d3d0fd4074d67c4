"""The optimum of each budget: numpy's own parabolas, and intervals that hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_gpt.scaling.intervals import Spread
from lit_gpt.scaling.laws.isoflop import LAW, budgets_of
from lit_gpt.scaling.vertices import vertices


def test_vertices_are_those_of_parabolas() -> None:
    assert LAW.example is not None
    data = LAW.example().data
    for vertex, budget in zip(vertices(data, Spread(math.nan, 0, ""), 0, 0.9), budgets_of(data["C"])):
        n, loss = np.log(data["N"][budget.rows]), data["L"][budget.rows]
        (root,) = np.poly1d(np.polyfit(n, loss, 2)).deriv().roots
        assert vertex.place["N"] == pytest.approx(math.exp(root)) and vertex.intervals == {}
        assert vertex.place["L"] == pytest.approx(1e3 * budget.flops**-0.15 + 1.7)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert LAW.example is not None
    example, rng, inside = LAW.example(), np.random.default_rng(0), list[bool]()
    for _ in range(50):
        data = {**example.data, "L": example.data["L"] + rng.normal(0, 0.003, len(example.data["L"]))}
        for vertex in vertices(data, Spread(0.003, math.inf, "given"), 200, 0.9):
            low, high = vertex.intervals["N"]
            inside.append(low <= 0.1 * vertex.flops**0.5 <= high)
    assert 0.84 <= np.mean(inside) <= 0.96, "200 draws of 90% have a standard deviation of 0.02"
