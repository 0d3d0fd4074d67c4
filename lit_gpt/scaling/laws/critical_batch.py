"""The critical batch, from the steps that runs of different batches need to one loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.batches import Hyperbola, hyperbola_problem, judged
from lit_gpt.scaling.law import Data, Example, Fitted, Law


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Huber's fit of ln(steps)."""
    problem = hyperbola_problem(data["batch"])
    found, notes = judged(problem.read(problem.fit(data["steps"])), data["batch"], data["steps"])
    return _fitted(found, data, fixed, notes)


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], steps: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    problem = hyperbola_problem(data["batch"])
    near = problem.fit(data["steps"])
    return [_fitted(found, data, fixed) for found in problem.refit(near, steps, counts)]


def _fitted(found: Hyperbola, data: Data, fixed: Mapping[str, float], notes: tuple[str, ...] = ()) -> Fitted:
    small = fixed.get("small", float(data["batch"].min()))
    return Fitted(numbers(found, small), lambda data: found(data["batch"]), 2, notes)


def numbers(found: Hyperbola, small: float) -> dict[str, float]:
    """Those of the hyperbola, and what follows from them."""
    least = {"least_steps": found.least_steps, "least_tokens": found.least_tokens, "critical": found.critical}
    return {**least, "critical_20": found.with_overhead(small)}


def _example() -> Example:
    law, batch = Hyperbola(3e3, 3e9), 2.0 ** np.arange(16, 24)
    return Example(numbers(law, 2.0**16), {"batch": batch, "steps": law(batch)}, 0.02)


PARAMETERS = {
    "least_steps": "steps that no batch can go below",
    "least_tokens": "tokens that no batch can go below",
    "critical": "the batch in tokens of twice the least of both",
    "critical_20": "the largest batch of at most 20% more steps than linear scaling from `small` (arXiv:2410.21676)",
    "small": "the batch from which linear scaling is counted: the smallest of the runs, unless it is given",
}
LAW = Law(
    sentence="The critical batch, from the steps that each batch needs to reach one loss.",
    formula="(steps / least_steps - 1) (tokens / least_tokens - 1) = 1, tokens = batch steps",
    reads={"batch": "batch", "steps": "steps"},
    parameters=PARAMETERS,
    fit=fit,
    relative=True,
    fixable=("small",),
    many=_many,
    example=_example,
)
