"""Chinchilla's first approach: the run of least loss at each budget of compute, from whole training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._allocation import FORMULA, NAMES, WORDS, least_loss, offset_of, optimum, shared, table
from lit_gpt.scaling._fit_data import check_offset, positive
from lit_gpt.scaling.law import RUN, Data, Fitted, Law

BUDGETS = 100  # between the least and the most compute that several runs reach; Hoffmann et al. 2022 take 1500


class Curves:
    """Training curves at common budgets: arrays are (runs, budgets), NaN where a run was not, or no longer."""

    def __init__(self, data: Data):
        columns = dict(zip(data, positive(1, **{**data, RUN: data[RUN] + 1.0})))
        self.runs = np.unique(columns[RUN])
        curves = [{name: column[columns[RUN] == run] for name, column in columns.items()} for run in self.runs]
        ends = np.array([[c["C"].min(), c["C"].max()] for c in curves])
        low, high = np.sort(ends[:, 0])[:2][-1], np.sort(ends[:, 1])[-2:][0]  # where at least two runs are
        if len(curves) < 3 or low >= high:
            raise UserError(
                f"There are {len(curves)} training curves, and this law needs 3 of different sizes that reach the same "
                "compute. Add runs, or fit --law isoflop or --law chinchilla to their ends."
            )
        self.budgets = np.geomspace(low, high, BUDGETS)
        self.size = np.array([c["N"].mean() for c in curves])
        self.loss = np.stack([_at(self.budgets, c["C"], c["L"]) for c in curves])
        self.tokens = np.stack([_at(self.budgets, c["C"], c["D"]) for c in curves])

    def best(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The run of least loss at each budget, and whether a smaller and a larger one were there too.

        runs: (samples, runs), which ones are in a sample. Returns (samples, budgets) arrays.
        """
        there = runs[:, :, None] & np.isfinite(self.loss)[None]
        best = np.where(there, self.loss, np.inf).argmin(1)
        size, sizes = self.size[best], self.size[None, :, None]
        smaller, larger = (
            np.logical_or.reduce(there & side, axis=1) for side in (sizes < size[:, None], sizes > size[:, None])
        )
        return best, smaller & larger


def _at(budgets: np.ndarray, flops: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A curve at these budgets, by straight lines between logarithms; NaN outside of it."""
    order = np.argsort(flops)
    found = np.interp(np.log(budgets), np.log(flops[order]), np.log(values[order]), left=np.nan, right=np.nan)
    return np.exp(found)


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Power laws through the lower envelope, where a smaller and a larger model than the best one were trained.

    data: C, N, D, L and the run of every logged step. fixed: c, of the loss. Raises UserError for curves without such a
    budget.
    """
    curves = Curves(data)
    whole = np.ones((1, len(curves.runs)), dtype=bool)
    best, inside = curves.best(whole)
    sizes = len(np.unique(curves.size[best[inside]]))
    if sizes < 2:
        raise UserError(
            f"{sizes} of {len(np.unique(curves.size))} sizes are the best at some compute with smaller and larger ones "
            "beside them, and this law needs 2. Add runs of other sizes, or train these for longer."
        )
    at = np.flatnonzero(inside[0])
    rows = best[0, at]
    check_offset(fixed.get("c"), curves.loss[rows, at], "least loss")
    (numbers,) = _laws(curves, whole, fixed)
    points = {"C": curves.budgets[at], "N": curves.size[rows], "D": curves.tokens[rows, at]}
    points |= {"L": curves.loss[rows, at], RUN: rows.astype(float)}
    notes = ["curves before their end are as good as shorter runs only where the rate does not decay until then"]
    if sizes == 2:
        notes.append("two sizes are on a power law whatever they are: add sizes")
    few = at[:: max(1, len(at) // 8)]
    shown = table(
        curves.budgets[few],
        (np.log(curves.size[best[0, few]]), np.log(curves.tokens[best[0, few], few]), curves.loss[best[0, few], few]),
        np.ones(len(few), dtype=bool),
        np.isfinite(curves.loss[:, few]).sum(0).tolist(),
    )
    return _fitted(numbers, tuple(notes), points, {"lower envelope": shown})


def _laws(curves: Curves, runs: np.ndarray, fixed: Mapping[str, float]) -> np.ndarray:
    best, inside = curves.best(runs)
    column = np.arange(BUDGETS)
    optima = np.log(curves.size[best]), np.log(curves.tokens[best, column]), curves.loss[best, column]
    lowest, highest = (
        side(optima[0], axis=1, where=inside, initial=start) for side, start in ((np.min, 99), (np.max, 0))
    )
    several = (highest > lowest)[:, None]  # one size says nothing of how it grows
    return np.where(several, shared(curves.budgets, optima, inside, offset_of(fixed, BUDGETS)), np.nan)


def _fitted(
    values: np.ndarray,
    notes: tuple[str, ...] = (),
    points: Data | None = None,
    tables: Mapping[str, list[tuple[str, ...]]] | None = None,
) -> Fitted:
    numbers = {name: float(value) for name, value in zip(NAMES, values)}
    return Fitted(
        numbers,
        lambda data: least_loss(numbers, data["C"]),
        3,
        notes,
        lambda budget: optimum(numbers, budget),
        points,
        tables or {},
    )


def many(
    found: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The envelopes of many sets of whole runs; see Law.many."""
    curves = Curves(data)
    first = np.array([np.flatnonzero(data[RUN] + 1.0 == run)[0] for run in curves.runs])
    numbers = _laws(curves, counts[:, first] > 0, fixed)
    return [_fitted(row) if math.isfinite(row.sum()) else None for row in numbers]


LAW = Law(
    sentence="The least loss at each compute, from whole training curves of several sizes (approach 1).",
    formula=FORMULA,
    reads={"C": "flops", "N": "parameters", "D": "tokens", "L": "loss"},
    parameters=WORDS,
    fit=fit,
    fixable=("c",),
    curves=True,
    many=many,
)
