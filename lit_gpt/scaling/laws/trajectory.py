"""The loss curve of a run from its learning rates: where a run that has begun will end (arXiv:2408.11029)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling.annealing import DELAY, SPANS, Annealing, areas, fit_annealing, refit
from lit_gpt.scaling.law import RUN, Data, Example, Fitted, Law

FURTHER = 1.5  # times the S2 of the fitted steps, beyond which an end is far from what they have shown
MOST = 0.2  # share of the loss that the rate's fall takes; 8% in docs/examples/decays, 10% in docs/fits.md
CHI_SQUARE = 3.84  # quantile 0.95 for one number
APART = 0.01  # share of the loss
LASTS = 5.0  # spans of lambda that a run should have: at the end all but 1% of the first fall has acted


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """One law for the curves of all runs; see fit_annealing. Points of warm-ups do not count.

    fixed: share, the part of each run's steps that is used, from its beginning; C; lambda, which is else the least of
    SPANS that these steps do not speak against, or the paper's where C is given or open: the longer a fall acts, the
    more of what it does is still to come, which nothing has shown. Raises UserError for a share that is none.
    """
    share = fixed.get("share", 1.0)
    if not 0 < share <= 1:
        raise UserError(f"The share of a curve is {share:g}; give a number above 0 and up to 1, such as 0.6.")
    delay = fixed.get("lambda", DELAY)
    found = _with(delay, data, share, fixed)
    notes = list[str]()
    if _delays(data, fixed) and np.isfinite(found.C):
        each = _each_delay(found, data, fixed, data["loss"][None], np.ones((1, len(data["loss"]))))
        alike = _alike(each, int(_used(data, share, delay)[2].sum()))
        found = _with(alike[0].delay, data, share, fixed)
        notes += _open(alike, data)
    told, seen = _fitted(found, fixed, data), _used(data, share, found.delay)
    points = {name: column[seen[2]] for name, column in data.items()}
    notes = (*found.notes, *notes, *_reach(data, seen, found, fixed))
    return replace(told, tables=_ends(data, told.curve(data)), notes=notes, points=points)


def _with(delay: float, data: Data, share: float, fixed: Mapping[str, float]) -> Annealing:
    s1, s2, used = _used(data, share, delay)
    return replace(fit_annealing(s1[used], s2[used], data["loss"][used], fixed.get("C")), delay=delay)


def _alike(each: list[tuple[list[Annealing], np.ndarray]], points: int) -> list[Annealing]:
    """The laws of one set of data that fit no worse than the best by more than chance, by a likelihood ratio."""
    size = np.maximum([errors[0] for _, errors in each], 1e-300)
    return [laws[0] for (laws, _), more in zip(each, points * np.log(size / size.min())) if more <= CHI_SQUARE]


def _open(alike: list[Annealing], data: Data) -> list[str]:
    """A sentence where lambdas that fit these steps as well say other things of the end of the first run."""
    here = _runs(data)[0]
    at = data["steps"][here].max()
    said = [float(law(*_at_steps(data, np.array([at]), law.delay))[0]) for law in alike]
    if np.ptp(said) <= APART * min(map(abs, said)):
        return []
    return [
        f"lambda from {alike[0].delay:.4g} to {alike[-1].delay:.4g} fits these steps as well, and says {min(said):.3f} "
        f"to {max(said):.3f} of step {at:g}: the least one is taken, and intervals are of the best one of each resample"
    ]


def _delays(data: Data, fixed: Mapping[str, float]) -> list[float]:
    """The lambdas that are tried: none where it or C is given, as a C is of one lambda."""
    last = float(data["steps"].max())
    return [] if {"C", "lambda"} & set(fixed) else [1 - 1 / span for span in SPANS if span <= last]


def _each_delay(
    near: Annealing, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[tuple[list[Annealing], np.ndarray]]:
    """The laws of many sets of data with each lambda that is tried, and their squared errors."""
    found = []
    for delay in _delays(data, fixed) or [near.delay]:
        s1, s2, used = _used(data, fixed.get("share", 1.0), delay)
        start = replace(near, delay=delay, seen=float(s2[used].max()))
        if near.seen > 0 and start.seen > 0:  # what the fall does is C S2, which lambda hardly changes
            start = replace(start, C=near.C * near.seen / start.seen)
        found.append(refit(start, s1[used], s2[used], losses[:, used], counts[:, used], "C" in fixed))
    return found


def _among(found: list[tuple[list[Annealing], np.ndarray]]) -> list[Annealing]:
    """Of each set of data the law of least error."""
    best = np.argmin([errors for _, errors in found], axis=0)
    return [found[which][0][i] for i, which in enumerate(best)]


def _reach(
    data: Data, seen: tuple[np.ndarray, np.ndarray, np.ndarray], found: Annealing, fixed: Mapping[str, float]
) -> tuple[str, ...]:
    """Sentences on what the fitted steps have not seen of the rate's fall, which no interval knows."""
    (s1, s2, used), notes, last = seen, list[str](), float(data["steps"].max())
    if not _delays(data, fixed) and last * (1 - found.delay) < LASTS:
        notes.append(
            f"a fall of the rate acts for about {1 / (1 - found.delay):.0f} steps with lambda = {found.delay:g}, and "
            f"the run has {last:.0f}: give a smaller one, such as --fix lambda=0.99"
        )
    if np.isfinite(found.C) and (taken := float(np.max(found.C * s2 / (found(s1, s2) + found.C * s2)))) > MOST:
        notes.append(
            f"the fall of the rate is said to take up to {taken:.0%} of the loss, where decays take a tenth: it falls "
            "for another reason, which this law does not know, so do not trust what it says of other steps"
        )
    if "C" in fixed and "lambda" not in fixed:
        notes.append(f"C is of one lambda, and this took {DELAY:g}: give both of one run (--fix C= lambda=)")
    if "C" not in fixed and s2.max() > FURTHER * s2[used].max() > 0:
        notes.append(
            f"the rate falls further than in the fitted steps (S2 is {s2.max() / s2[used].max():.1f} times theirs), so "
            "the end is extrapolated, and its interval may be too narrow: give C and lambda of a run of the same "
            "schedule that has ended (--fix C= lambda=)"
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
    numbers = {"C": np.nan, "lambda": fixed.get("lambda", DELAY), **fitted.numbers}
    near = Annealing(*(numbers[name] for name in ("L0", "A", "alpha", "C")), delay=numbers["lambda"])
    _, s2, used = _used(data, fixed.get("share", 1.0), near.delay)
    near = replace(near, seen=float(s2[used].max()))
    ways = _each_delay(near, data, fixed if np.isfinite(near.C) else {**fixed, "lambda": near.delay}, losses, counts)
    return [_fitted(law, fixed, data) for law in _among(ways)]


def _fitted(found: Annealing, fixed: Mapping[str, float], runs: Data) -> Fitted:
    def curve(data: Data) -> np.ndarray:
        if "rate" not in data:
            return found(*_at_steps(runs, data["steps"], found.delay))
        s1, s2, over = _of_runs(data, found.delay)
        return np.where(over, found(s1, s2), np.nan)

    def place(step: float) -> Data:
        _at_steps(runs, np.array([step]), found.delay)
        return {"steps": np.array([step])}

    numbers = {"L0": found.L0, "A": found.A, "alpha": found.alpha}
    if np.isfinite(found.C):
        numbers |= {"C": found.C, "lambda": found.delay}
    given = {"C", "lambda"} if "C" in fixed else {"lambda"} & set(fixed)  # a given C is of a given lambda
    return Fitted(numbers, curve, len(set(numbers) - given), place=place)


def _at_steps(data: Data, at: np.ndarray, delay: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 of the first run at some steps. Raises UserError for a step whose rate is not known."""
    here = _runs(data)[0]
    steps = data["steps"][here]
    for step in at:
        if not steps.min() <= step <= steps.max():
            raise UserError(
                f"Step {step:g} is not in the first run, which has those from {steps.min():g} to {steps.max():g}."
            )
    order = np.argsort(steps, kind="stable")
    s1, s2, _ = areas(steps[order], data["rate"][here][order], delay)
    return np.interp(at, steps[order], s1), np.interp(at, steps[order], s2)


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
    true = {"L0": 2.6, "A": 0.6, "alpha": 0.5, "C": 0.25}  # lambda is one of a few, and always found
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
        "lambda": "a fall of the rate acts for about 1 / (1 - lambda) steps",
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
