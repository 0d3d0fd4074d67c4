"""More rates where a study needs them: until the best one is bracketed, and known well enough.

    refine: {factor: 1.41, width: 0.1, runs: 4}

Rows that differ in nothing but the rate (and the seed) are a group. When its runs are done: where the lowest loss is at
an end, the next rate beyond that end is added; where the interval of the fitted optimum is wider than `width` (in
powers of two), rates are added halfway between the best one and its neighbours. What is added follows from the losses
alone, so a ladder that starts again, or another one beside it, adds the same rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.rows import Row
from lit_gpt.lab.values import as_number
from lit_gpt.scaling.sweeps import fit_optima

AROUND = 2  # rates on each side of the best one that the parabola is fitted to: it is one near the optimum only
CLOSE = 1.03  # rates nearer to each other than this tell nothing new


@dataclass(frozen=True)
class Refine:
    """How a grid of rates is refined. rate: the option. factor: between a rate at an end and the next one. width: of
    the interval of the best rate, in powers of two. runs: rates that are added to a group, at most. derived: options
    that the study derives, which may follow the rate and so part no group.
    """

    rate: str = "base_hps.eta0"
    factor: float = math.sqrt(2)
    width: float = 0.5
    runs: int = 4
    derived: tuple[str, ...] = ()


def read_refine(given: Any, path: Path) -> Refine | None:
    """The part of a study, None where it has none. Raises UserError for values that are none."""
    if given is None or given is False:
        return None
    try:
        made = Refine(**({} if given is True else given))
        if not 1 < made.factor < math.inf or not made.width > 0 or not made.runs >= 0:
            raise ValueError("factor must be above 1, width above 0, runs not below 0")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: refine has rate (an option), factor (above 1), width (in powers of two) and runs (a count); "
            f"found {given} ({error})."
        ) from error
    return made


def check_rates(refine: Refine, rows: Sequence[Row], path: Path) -> None:
    """Raise UserError where no row has the rate, or one has no number there, and so nothing would be refined."""
    rates = [as_number(row.options[refine.rate]) for row in rows if refine.rate in row.options]
    if not rates or not all(isinstance(rate, int | float) and rate > 0 for rate in rates):
        raise UserError(
            f"{path}: refine looks at {refine.rate}, which must be an axis, or derived, with numbers above 0; found "
            f"{', '.join(map(str, rates[:3])) or 'none'}. Name another option with rate."
        )


def group_of(row: Row, refine: Refine) -> tuple[tuple[str, str], ...]:
    """What the rows of a group share: every option but the rate, the seed and what is derived."""
    own = (refine.rate, "seed", *refine.derived)
    return tuple(sorted((key, str(value)) for key, value in row.options.items() if key not in own))


def added_rates(
    rows: Sequence[Row], added: Sequence[Row], losses: Mapping[str, float | None], refine: Refine
) -> list[tuple[Row, float]]:
    """(row to copy, rate) of the runs that the results so far ask for; one row of each seed of a group is copied.

    rows, added: those of the study, and those that this function asked for before. losses: row -> loss, infinite where
    it diverged; a row that is not in it is not done yet, and one whose loss is None failed, so its group stays.
    """
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in (*rows, *added):
        if refine.rate in row.options:
            groups[group_of(row, refine)].append(row)
    found = list[tuple[Row, float]]()
    for members in groups.values():
        if any(losses.get(row.name) is None for row in members):
            continue
        spent = {row.options[refine.rate] for row in members if row in added}
        points: dict[float, list[float]] = defaultdict(list)
        for row in members:
            points[as_number(row.options[refine.rate])].append(losses[row.name] or 0.0)
        seeds = {row.options.get("seed"): row for row in reversed(members)}
        for rate in next_rates(points, refine)[: max(refine.runs - len(spent), 0)]:
            found += [(row, rate) for row in seeds.values()]
    return found


def next_rates(points: Mapping[float, Sequence[float]], refine: Refine) -> list[float]:
    """The rates to try next, none where the best one is known. points: rate -> losses, infinite ones of diverged runs.

    Rates have four digits, so that names and files say exactly what was run.
    """
    rates = sorted(points)
    means = {rate: float(np.mean(points[rate])) for rate in rates}
    best = min(rates, key=lambda rate: means[rate])
    if not math.isfinite(means[best]):
        return [_rounded(rates[0] / refine.factor)]
    at = rates.index(best)
    below, above = rates[0] / refine.factor, rates[-1] * refine.factor
    if ends := [rate for end, rate in ((0, below), (len(rates) - 1, above)) if at == end]:
        return [_rounded(rate) for rate in ends]
    if width_of(points, best) <= refine.width:
        return []
    halfway = [math.sqrt(best * rates[at + side]) for side in (-1, 1)]
    return [_rounded(rate) for rate in halfway if all(max(rate / r, r / rate) > CLOSE for r in rates)]


def width_of(points: Mapping[float, Sequence[float]], best: float) -> float:
    """How far apart, in powers of two, fits put the best rate that leave out one rate each; infinite where they cannot.

    The fits are parabolas in ln(rate) through the rates around the best one.
    """
    rates = sorted(rate for rate, losses in points.items() if np.isfinite(losses).all())
    at = rates.index(best)
    near = rates[max(at - AROUND, 0) : at + AROUND + 1]
    found = list[float]()
    for left_out in (None, *near):
        kept = [(rate, loss) for rate in near if rate != left_out for loss in points[rate]]
        try:
            found.append(fit_optima(np.ones(len(kept)), *(np.array(column) for column in zip(*kept))).optima[0].best)
        except UserError:  # too few rates, or no minimum without this one
            return math.inf
    return math.log2(max(found) / min(found))


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")
