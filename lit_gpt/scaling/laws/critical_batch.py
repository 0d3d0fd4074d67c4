"""The critical batch, from the steps that runs of different batches need to one loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.batches import Hyperbola, fit_hyperbola
from lit_gpt.scaling.law import Data, Example, Fitted, Law


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Huber's fit of ln(steps); see fit_hyperbola. fixed: small, the batch from which linear scaling is counted."""
    found = fit_hyperbola(data["batch"], data["steps"])
    return Fitted(
        numbers(found, fixed.get("small", float(data["batch"].min()))),
        lambda data: found(data["batch"]),
        2,
        found.notes,
    )


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
    example=_example,
)
