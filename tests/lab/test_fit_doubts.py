"""Columns in other units, and sweeps whose runs differ in size, are said; what is possible is not."""

from __future__ import annotations

import numpy as np
import pytest

from lit_gpt.lab.fit_doubts import units, unlike_in_sweeps
from lit_gpt.lab.runs import FINISHED, Run
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named

READS = {"N": "parameters", "D": "tokens", "L": "loss"}


def run(name: str = "one", /, **numbers: float) -> Run:
    return Run(name, None, FINISHED, {}, numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        {"parameters": 1e9, "tokens": 2e4},  # tokens in millions
        {"parameters": 1000, "tokens": 20},  # parameters in millions, tokens in billions
        {"parameters": 1000, "tokens": 2e10},  # parameters in millions
        {"parameters": 1e9, "tokens": 2e10, "flops_6nd": 1.2e20, "flops": 1.2e-1},  # compute in units of 1e21
        {"parameters": 1000, "tokens": 2e4, "flops_6nd": 1.2e8, "flops": 1.2e20},  # both in millions
    ],
)
def test_units_that_cannot_be(numbers: dict[str, float]) -> None:
    (said,) = units([run(), run("other", **numbers)], READS)
    assert said.startswith("other has ") and "millions" in said
    assert not list(units([run("one", **numbers)], {"x": "batch", "y": "loss"}))


def test_units_that_can_be() -> None:
    """A laptop's run of one minute, a large head on 4,144 parameters, and 10,000 tokens per parameter."""
    tiny = run(parameters=238144, tokens=62241, flops=1.5e11, flops_6nd=8.9e10)
    head = run(parameters=4144, tokens=642211, flops=1.6e12, flops_6nd=1.6e10)
    long = run(parameters=1e8, tokens=1e12)
    assert not list(units([tiny, head, long], READS))


def sweep() -> tuple[list[Run], Data]:
    runs = [
        run(f"{x:g}_{depth}", depth=depth, width=64, tokens=x, parameters=1e6) for x in (1e9, 2e9) for depth in (8, 12)
    ]
    return runs, {"x": np.array([r.numbers["tokens"] for r in runs])}


def test_sizes_that_differ_inside_a_sweep() -> None:
    runs, data = sweep()
    law = law_named("best_rate")
    (said,) = unlike_in_sweeps(law, runs, data, law.reads)
    assert "differ in depth" in said and "--group depth" in said
    assert not list(unlike_in_sweeps(law, runs[::2], {"x": data["x"][::2]}, law.reads))
    (said,) = unlike_in_sweeps(law, runs, {"x": np.array([8.0, 12, 8, 12])}, {**law.reads, "x": "depth"})
    assert "differ in tokens" in said
    assert not list(unlike_in_sweeps(law_named("power"), runs, data, law_named("power").reads))
