"""The critical batch, from training curves at constant rates: the steps at which each reaches one loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lit_gpt.scaling.batches import Hyperbola
from lit_gpt.scaling.law import RUN, Example
from lit_gpt.scaling.laws import critical_batch_budgets
from lit_gpt.scaling.laws.critical_batch import numbers

fit = critical_batch_budgets.fit


def _example() -> Example:
    law, points = Hyperbola(3e3, 3e9), 20
    sizes, share = 2.0 ** np.arange(17, 23), np.geomspace(0.4, 2.0, points)
    batch, steps = np.repeat(sizes, points), np.concatenate([law(size) * share for size in sizes])
    columns = {RUN: np.repeat(np.arange(6.0), points), "batch": batch, "steps": steps}
    return Example(
        numbers(law, 2.0**17), {**columns, "loss": 1.7 + 1.3 * np.tile(share, 6) ** -0.3}, 0.01, {"target": 3.0}
    )


LAW = replace(
    critical_batch_budgets.LAW,
    sentence="The critical batch, from the training curves of runs of several batches at constant rates.",
    curves=True,
    example=_example,
)
