"""The loss curve of a run from its learning rates: where a run that has begun will end (arXiv:2408.11029)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling.annealing import DELAY, Annealing, areas, fit_annealing, refit
from lit_gpt.scaling.law import RUN, Data, Example, Fitted, Law


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """One law for the curves of all runs; see fit_annealing. Points of warm-ups do not count.

    fixed: share, the part of each run's steps that is used, from its beginning; C; lambda.
    """
    share, delay = fixed.get("share", 1.0), fixed.get("lambda", DELAY)
    if not 0 < share <= 1:
        raise UserError(f"The share of a curve is {share:g}; give a number above 0 and up to 1, such as 0.6.")
    s1, s2, used = _used(data, share, delay)
    found = fit_annealing(s1[used], s2[used], data["loss"][used], fixed.get("C"))
    told = _fitted(found, fixed)
    return replace(told, tables=_ends(data, told.curve(data)) if share < 1 else {}, notes=found.notes)


def _used(data: Data, share: float, delay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S1, S2, and which points the fit is of."""
    s1, s2, over = _of_runs(data, delay)
    begun = np.zeros(len(s1), dtype=bool)
    for here in _runs(data):
        begun |= here & (data["steps"] <= share * data["steps"][here].max())
    return s1, s2, over & begun


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    s1, s2, used = _used(data, fixed.get("share", 1.0), fixed.get("lambda", DELAY))
    near = fit_annealing(s1[used], s2[used], data["loss"][used], fixed.get("C"))
    again = refit(near, s1[used], s2[used], losses[:, used], counts[:, used], "C" in fixed)
    return [_fitted(law, fixed) for law in again]


def _fitted(found: Annealing, fixed: Mapping[str, float]) -> Fitted:
    def curve(data: Data) -> np.ndarray:
        s1, s2, over = _of_runs(data, fixed.get("lambda", DELAY))
        return np.where(over, found(s1, s2), np.nan)

    numbers = {"L0": found.L0, "A": found.A, "alpha": found.alpha, "C": found.C}
    known = {name: value for name, value in numbers.items() if np.isfinite(value)}
    return Fitted(known, curve, len(known) - ("C" in fixed))


def _runs(data: Data) -> list[np.ndarray]:
    """Which points are of each run, (points,)."""
    names = data.get(RUN, np.zeros(len(data["steps"])))
    return [names == name for name in np.unique(names)]


def _of_runs(data: Data, delay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """areas() of each run, in the order of the points."""
    s1, s2, over = np.zeros(len(data["steps"])), np.zeros(len(data["steps"])), np.zeros(len(data["steps"]), dtype=bool)
    for here in _runs(data):
        order = np.flatnonzero(here)[np.argsort(data["steps"][here], kind="stable")]
        s1[order], s2[order], over[order] = areas(data["steps"][order], data["rate"][order], delay)
    return s1, s2, over


def _ends(data: Data, predicted: np.ndarray) -> Mapping[str, list[list[str]]]:
    """Measured and predicted loss at the last step of each run, which the fit has not seen."""
    rows = [["run", "step", "measured", "predicted", "difference"]]
    for number, here in enumerate(_runs(data), 1):
        last = np.flatnonzero(here)[np.argmax(data["steps"][here])]
        loss, ours = data["loss"][last], predicted[last]
        rows.append([str(number), f"{data['steps'][last]:.0f}", f"{loss:.4f}", f"{ours:.4f}", f"{ours - loss:+.4f}"])
    return {"Ends of the runs": rows}


def _example() -> Example:
    """Two runs, one with a constant rate and one that decays at its end, as the paper fits."""
    steps = np.arange(50, 10001, 50, dtype=np.float64)
    up = np.minimum(steps / 500, 1.0)
    rate = np.r_[2e-3 * up, 2e-3 * up * np.minimum((10000 - steps) / 3000 + 0.02, 1.0)]
    data = {RUN: np.repeat([0.0, 1.0], len(steps)), "steps": np.tile(steps, 2), "rate": rate}
    s1, s2, _ = _of_runs(data, DELAY)
    loss = 2.6 + 0.6 * s1**-0.5 - 0.25 * s2
    true = {"L0": 2.6, "A": 0.6, "alpha": 0.5, "C": 0.25}
    return Example(true, {**data, "loss": loss}, 0.005)


LAW = Law(
    sentence="The loss at every step of a run from its learning rates, fitted to the beginning or to whole curves.",
    formula="L = L0 + A S1^-alpha - C S2; S1: sum of rates; S2: sum of m_i = lambda m_(i-1) + rate_(i-1) - rate_i",
    reads={"steps": "steps", "rate": "rate", "loss": "loss"},
    parameters={
        "L0": "loss at an endless sum of rates",
        "A": "factor",
        "alpha": "exponent of the sum of rates",
        "C": "what the rate's fall does to the loss",
        "lambda": f"how long a fall of the rate acts, {DELAY} unless it is given",
        "share": "part of the steps that is fitted, from the beginning; 1 unless it is given",
    },
    fit=fit,
    fixable=("C", "lambda", "share"),
    curves=True,
    designed=True,
    many=_many,
    example=_example,
)
