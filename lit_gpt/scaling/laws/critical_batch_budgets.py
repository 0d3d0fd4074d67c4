"""The critical batch, from runs of several batches and token budgets, each with its rate decayed (arXiv:2505.13738)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.scaling.batches import Hyperbola, Reached, hyperbola_problem, judged, resampled, steps_to_loss
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.laws.critical_batch import PARAMETERS, numbers

ENOUGH = 3  # batches that a hyperbola needs: one more than it has numbers


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """A power law over steps for each batch, the steps at which each reaches the target, and the hyperbola of those."""
    reached, left_out = steps_to_loss(data["batch"], data["steps"], data["loss"], fixed.get("target"))
    problem = hyperbola_problem(reached.batches)
    found, notes = judged(problem.read(problem.fit(reached.steps)), reached.batches, reached.steps)
    rows = [["batch", "steps"], *([f"{b:.6g}", f"{s:.6g}"] for b, s in zip(reached.batches, reached.steps))]
    tables = {f"Steps to the loss {reached.target:.4f}": rows}
    return replace(_fitted(reached, found, fixed), notes=(*left_out, *notes), tables=tables)


def many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    reached, _ = steps_to_loss(data["batch"], data["steps"], data["loss"], fixed.get("target"))
    problem = hyperbola_problem(reached.batches)
    near, again = problem.fit(reached.steps), resampled(reached, data["steps"], losses, counts)
    steps = np.array([one.steps for one in again])
    there = np.isfinite(steps)
    found = problem.refit(near, np.where(there, steps, 1.0), there.astype(float))
    enough = there.sum(1) >= ENOUGH
    return [_fitted(one, law, fixed) if ok else None for one, law, ok in zip(again, found, enough)]


def _fitted(reached: Reached, found: Hyperbola, fixed: Mapping[str, float]) -> Fitted:
    own = {**numbers(found, fixed.get("small", float(reached.batches.min()))), "target": reached.target}

    def curve(data: Data) -> np.ndarray:
        return reached.loss(data["batch"], data["steps"])

    return Fitted(own, curve, 3 * len(reached.batches))


def _example() -> Example:
    law = Hyperbola(3e3, 3e9)
    batch, times = np.repeat(2.0 ** np.arange(17, 23), 6), np.tile(np.geomspace(0.5, 2.0, 6), 6)
    columns = {"batch": batch, "steps": law(batch) * times, "loss": 1.7 + 1.3 * times**-0.3}
    return Example(numbers(law, 2.0**17), columns, 0.003, {"target": 3.0})


LAW = Law(
    sentence="The critical batch, from runs of several batches that were each trained for several budgets.",
    formula="loss = a_batch steps^-b_batch + c_batch, and the hyperbola of critical_batch at the target loss",
    reads={"batch": "batch", "steps": "steps", "loss": "loss"},
    parameters={**PARAMETERS, "target": "the loss to reach: the lowest that every batch reaches, unless it is given"},
    fit=fit,
    fixable=("target", "small"),
    many=many,
    designed=True,
    example=_example,
)
