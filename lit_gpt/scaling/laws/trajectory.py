"""The loss curve of a run from its learning rates: where a run that has begun will end (arXiv:2408.11029)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling.annealing import DELAY, Annealing, areas, fit_annealing, refit
from lit_gpt.scaling.law import RUN, Data, Example, Fitted, Law

FURTHER = 1.5  # times the S2 of the fitted steps, beyond which an end is far from what they have shown
LASTS = 5.0  # spans of lambda that a run should have: at the end all but 1% of the first fall has acted


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """One law for the curves of all runs; see fit_annealing. Points of warm-ups do not count.

    fixed: share, the part of each run's steps that is used, from its beginning; C; lambda.
    """
    share, delay = fixed.get("share", 1.0), fixed.get("lambda", DELAY)
    if not 0 < share <= 1:
        raise UserError(f"The share of a curve is {share:g}; give a number above 0 and up to 1, such as 0.6.")
    s1, s2, used = _used(data, share, delay)
    found = fit_annealing(s1[used], s2[used], data["loss"][used], fixed.get("C"))
    told = _fitted(found, fixed, data)
    points = {name: column[used] for name, column in data.items()}
    notes = (*found.notes, *_reach(data, s2, used, delay, "C" in fixed))
    return replace(told, tables=_ends(data, told.curve(data)), notes=notes, points=points)


def _reach(data: Data, s2: np.ndarray, used: np.ndarray, delay: float, known: bool) -> tuple[str, ...]:
    """Sentences on what the fitted steps have not seen of the rate's fall, which no interval knows."""
    notes, last = list[str](), float(data["steps"].max())
    if last * (1 - delay) < LASTS:
        notes.append(
            f"a fall of the rate acts for about {1 / (1 - delay):.0f} steps with lambda = {delay:g}, and the run has "
            f"{last:.0f}: give a smaller one, such as --fix lambda=0.99"
        )
    if not known and s2.max() > FURTHER * s2[used].max() > 0:
        notes.append(
            f"the rate falls further than in the fitted steps (S2 is {s2.max() / s2[used].max():.1f} times theirs), so "
            "the end is extrapolated, and its interval too narrow: give C of a similar run that has ended (--fix C=)"
        )
    return tuple(notes)


def _used(data: Data, share: float, delay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S1, S2, and which points the fit is of."""
    s1, s2, over = _of_runs(data, delay)
    begun = np.zeros(len(s1), dtype=bool)
    for here in _runs(data):
        begun |= here & (data["steps"] <= share * data["steps"][here].max())
    return s1, s2, over & begun & np.isfinite(data["loss"])


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    s1, s2, used = _used(data, fixed.get("share", 1.0), fixed.get("lambda", DELAY))
    near = fit_annealing(s1[used], s2[used], data["loss"][used], fixed.get("C"))
    again = refit(near, s1[used], s2[used], losses[:, used], counts[:, used], "C" in fixed)
    return [_fitted(law, fixed, data) for law in again]


def _fitted(found: Annealing, fixed: Mapping[str, float], runs: Data) -> Fitted:
    delay = fixed.get("lambda", DELAY)

    def curve(data: Data) -> np.ndarray:
        if "S1" in data:
            return found(data["S1"], data["S2"])
        s1, s2, over = _of_runs(data, delay)
        return np.where(over, found(s1, s2), np.nan)

    def place(step: float) -> Data:
        return _at_step(runs, step, delay)

    numbers = {"L0": found.L0, "A": found.A, "alpha": found.alpha, "C": found.C}
    known = {name: value for name, value in numbers.items() if np.isfinite(value)}
    return Fitted(known, curve, len(known) - ("C" in fixed), place=place)


def _at_step(data: Data, step: float, delay: float) -> Data:
    """S1 and S2 of the first run at a step. Raises UserError for a step whose rate is not known."""
    here = _runs(data)[0]
    steps = data["steps"][here]
    if not steps.min() <= step <= steps.max():
        raise UserError(
            f"Step {step:g} is not in the first run, which has those from {steps.min():g} to {steps.max():g}."
        )
    order = np.argsort(steps, kind="stable")
    s1, s2, _ = areas(steps[order], data["rate"][here][order], delay)
    return {"S1": np.array([np.interp(step, steps[order], s1)]), "S2": np.array([np.interp(step, steps[order], s2)])}


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
    """Measured and predicted loss at the last step of each run."""
    rows = [["run", "step", "measured", "predicted", "difference"]]
    for number, here in enumerate(_runs(data), 1):
        last = np.flatnonzero(here)[np.argmax(data["steps"][here])]
        loss, ours = data["loss"][last], predicted[last]
        seen = (f"{loss:.4f}", f"{ours - loss:+.4f}") if np.isfinite(loss) else ("to come", "")
        rows.append([str(number), f"{data['steps'][last]:.0f}", seen[0], f"{ours:.4f}", seen[1]])
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
    every_step=True,
    designed=True,
    many=_many,
    example=_example,
)
