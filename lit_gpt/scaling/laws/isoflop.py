"""Chinchilla's second approach: of each budget of compute the size of least loss, by a parabola in ln N."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._allocation import FORMULA, NAMES, WORDS, least_loss, offset_of, optimum, shared, table
from lit_gpt.scaling._fit_data import check_offset, positive
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.parabolas import misshapen

# Budgets closer than this are one: sizes and batches round them, studies step by factors of 2 or more.
APART = math.log(1.2)


@dataclass(frozen=True, eq=False)
class Budget:
    """The runs of one budget. rows: their places in the data. flops: geometric mean of what they used."""

    rows: np.ndarray
    flops: float


@dataclass(frozen=True)
class Valleys:
    """The parabolas of all budgets for `samples` sets of losses; arrays are (samples, budgets).

    ln_n, loss: the vertices. curvature: at most 0 where there is no minimum. ln_d: tokens at the vertices.
    """

    ln_n: np.ndarray
    ln_d: np.ndarray
    loss: np.ndarray
    curvature: np.ndarray


def budgets_of(flops: np.ndarray) -> list[Budget]:
    """The budgets in these runs, the smallest first."""
    order = np.argsort(flops, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(flops[order])) > APART) + 1
    return [Budget(rows, math.exp(float(np.log(flops[rows]).mean()))) for rows in np.split(order, cuts)]


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """The parabola of each budget, and power laws through the vertices that lie inside of their budget's sizes.

    fixed: c, of the loss. Raises UserError for fewer than two budgets with such a minimum.
    """
    columns = dict(zip(data, positive(1, **data)))
    every = budgets_of(columns["C"])
    chosen = [budget for budget in every if len(np.unique(columns["N"][budget.rows])) >= 3]
    found = valleys(columns, chosen, columns["L"][None]) if chosen else None
    inside = [found is not None and _inside(columns, budget, found, i) for i, budget in enumerate(chosen)]
    notes = _notes(columns, every, chosen, inside, found)
    if found is None or sum(inside) < 2:
        open_ = [note.split(" (")[0] for note in notes if "bracketed" in note]
        add = (
            "sizes"
            if sum(inside) < len(every)
            else f"budgets; those less than {math.exp(APART):.2g} times apart are one"
        )
        raise UserError(
            f"{sum(inside)} of {len(every)} budgets have three sizes and their least loss between the smallest and the "
            f"largest, and this law needs 2{': ' * bool(open_)}{'; '.join(open_[:3])}. Add runs of other {add}."
        )
    used = [budget for budget, ok in zip(chosen, inside) if ok]
    offset = offset_of(fixed, len(used))
    check_offset(fixed.get("c"), found.loss[0, inside], "least loss")
    notes += _shape(columns, used)
    numbers = _laws(columns, used, columns["L"][None], offset)[0]
    optima = found.ln_n[0], found.ln_d[0], found.loss[0]
    runs = [len(budget.rows) for budget in chosen]
    tables = {"optimum of each budget": table(np.array([b.flops for b in chosen]), optima, np.array(inside), runs)}
    return _fitted(columns, used, columns["L"], numbers, notes, tables)


def _inside(data: Data, budget: Budget, found: Valleys, i: int) -> bool:
    ln_n = np.log(data["N"][budget.rows])
    return bool(found.curvature[0, i] > 0 and ln_n.min() < found.ln_n[0, i] < ln_n.max())


def _notes(
    data: Data, every: Sequence[Budget], chosen: Sequence[Budget], inside: Sequence[bool], found: Valleys | None
) -> tuple[str, ...]:
    notes = [
        f"the budget {budget.flops:.3g} has fewer than three sizes and was left out"
        for budget in every
        if budget not in chosen
    ]
    for i, (budget, ok) in enumerate(zip(chosen, inside)):
        if not ok and found is not None:
            ln_n = np.log(data["N"][budget.rows])
            side = "smaller" if found.ln_n[0, i] <= ln_n.mean() else "larger"
            where = f"add {side} models" if found.curvature[0, i] > 0 else "its losses have no minimum in ln N"
            notes.append(f"the optimum of the budget {budget.flops:.3g} is not bracketed ({where}): it was left out")
    for budget in chosen:
        if (times := float(np.ptp(np.log(data["C"][budget.rows])))) > APART:
            notes.append(
                f"the runs of the budget {budget.flops:.3g} differ in compute by a factor of {math.exp(times):.3g}, "
                "which moves its optimum: choose others, or the column that is one for them (--x C=flops_6nd)"
            )
    if sum(inside) == 2:
        notes.append(
            "two budgets are on any power law, and without an offset (--fix c=1.7) L* falls for ever: add budgets"
        )
    if any(inside) and all(len(budget.rows) == 3 for budget, ok in zip(chosen, inside) if ok):
        notes.append("three sizes are on a parabola whatever they are: add sizes")
    return tuple(notes)


def _shape(data: Data, used: Sequence[Budget]) -> tuple[str, ...]:
    """What the parabolas miss of their budgets."""
    return misshapen(
        [budget.rows for budget in used], np.log(data["N"]), data["L"], {name: data[name] for name in "CNL"}, "models"
    )


def valleys(data: Data, budgets: Sequence[Budget], losses: np.ndarray) -> Valleys:
    """The parabola of each budget, of each set of losses (samples, runs)."""
    found = []
    for budget in budgets:
        ln_n, ln_d = np.log(data["N"][budget.rows]), np.log(data["D"][budget.rows])
        middle = ln_n.mean()
        bend, slope, level = np.polyfit(ln_n - middle, losses[:, budget.rows].T, 2)
        at = -slope / np.where(bend != 0, 2 * bend, np.nan)
        falls, start = np.polyfit(ln_n - middle, ln_d, 1)  # along a budget the tokens are a power of the size
        found.append((middle + at, start + falls * at, level + slope * at / 2, bend))
    return Valleys(*np.array(found).transpose(1, 2, 0))


def _laws(data: Data, used: Sequence[Budget], losses: np.ndarray, offset: float | None) -> np.ndarray:
    """The numbers of NAMES, (samples, 7); NaN for samples in which a budget has no minimum."""
    found = valleys(data, used, losses)
    valid = (found.curvature > 0) & (found.loss > 0)
    flops = np.array([budget.flops for budget in used])
    numbers = shared(flops, (found.ln_n, found.ln_d, found.loss), valid, offset)
    return np.where(valid.min(1, keepdims=True), numbers, np.nan)


def _fitted(
    data: Data,
    used: Sequence[Budget],
    losses: np.ndarray,
    values: np.ndarray,
    notes: tuple[str, ...] = (),
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Fitted:
    numbers = {name: float(value) for name, value in zip(NAMES, values)}
    parabolas = [(data["C"][b.rows], np.polyfit(np.log(data["N"][b.rows]), losses[b.rows], 2)) for b in used]

    def curve(at: Data) -> np.ndarray:
        said, ln_c = least_loss(numbers, at["C"]), np.log(at["C"])
        for flops, parabola in parabolas:
            of = (ln_c > np.log(flops.min()) - APART / 2) & (ln_c < np.log(flops.max()) + APART / 2)
            said = np.where(of, np.polyval(parabola, np.log(at["N"])), said)
        return said

    rows = np.concatenate([budget.rows for budget in used])
    points = {name: column[rows] for name, column in data.items()}
    return Fitted(numbers, curve, 3 * len(used), notes, lambda budget: optimum(numbers, budget), points, tables or {})


def many(
    found: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The laws of many sets of losses of the same runs; see Law.many. A set without some runs is fitted anew."""
    assert found.points is not None
    if (counts != 1).any():
        return LAW.refit(data, fixed, losses, counts)
    every = budgets_of(data["C"])
    kept = {budget.flops for budget in budgets_of(found.points["C"])}
    used = [budget for budget in every if any(abs(math.log(budget.flops / flops)) < 1e-9 for flops in kept)]
    numbers = _laws(data, used, losses, offset_of(fixed, len(used)))
    return [_fitted(data, used, loss, row) if np.isfinite(row).all() else None for loss, row in zip(losses, numbers)]


def _example() -> Example:
    """Four budgets of five sizes around N* = 0.1 C^0.5."""
    c = np.repeat(np.geomspace(1e18, 1e20, 4), 5)
    best = 0.1 * c**0.5
    n = best * np.tile(np.exp(np.linspace(-1.4, 1.4, 5)), 4)
    loss = 1e3 * c**-0.15 + 1.7 + 0.05 * np.log(n / best) ** 2
    true = {"N_exponent": 0.5, "D_exponent": 0.5, "N_factor": 0.1, "b": 0.15, "c": 1.7}
    return Example(true, {"C": c, "N": n, "D": c / (6 * n), "L": loss}, 0.003)


LAW = Law(
    sentence="The best size for each of some budgets of compute, and how it grows with the budget (approach 2).",
    formula=f"L = L* + k (ln N - ln N*)^2 at each budget C; {FORMULA}",
    reads={"C": "flops", "N": "parameters", "D": "tokens", "L": "loss"},
    parameters=WORDS,
    fit=fit,
    fixable=("c",),
    designed=True,
    many=many,
    example=_example,
)
