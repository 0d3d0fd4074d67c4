"""The lines of a fitted law in a figure or on a page.

A law of one column is drawn over it, an isoFLOP study over the size with a curve for each budget, the envelope of
curves over compute, and every other law of several columns over what it says itself, where the right law is the
diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lit_gpt.lab.fit_report import Report, band
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws.isoflop import budgets_of

STEPS = 100  # of a curve
SPOKEN = "what the law says"


class Line(NamedTuple):
    """A curve of a law with the band that holds `level` of all runs."""

    x: np.ndarray
    said: np.ndarray
    low: np.ndarray
    high: np.ndarray
    label: str


def by_budget(report: Report) -> str | None:
    """The symbol of the size, in laws that are drawn for each budget."""
    return "N" if {"C", "N"} <= set(report.law.given) and not report.law.curves else None


def over(report: Report) -> str | None:
    """The symbol that is drawn to the right; None for what the law says."""
    alone = len(report.law.given) == 1 or (report.law.curves and report.fitted.place is not None)
    return by_budget(report) or (report.law.given[0] if alone else None)


def x_of(report: Report, places: Data) -> np.ndarray:
    """Where places are drawn, from left to right."""
    symbol = over(report)
    return report.fitted.curve(places) if symbol is None else places[symbol]


def lines_of(report: Report, more: Sequence[Data]) -> Iterator[Line]:
    """The law over the runs and on to other places."""
    points, symbol = report.points, over(report)
    # A prediction may have fewer columns than runs have: that of a budget by soft_to_hard has no soft figure.
    places = [points, *(at for at in more if set(report.law.given) <= at.keys() or symbol in at)]
    x = np.concatenate([x_of(report, at) for at in places])
    if symbol is None:
        every = {name: np.concatenate([at[name] for at in places]) for name in report.law.given}
        order = np.argsort(x)
        said, low, high = band(report, {name: column[order] for name, column in every.items()})
        yield Line(said, said, low, high, "the law")
    elif by_budget(report):
        for budget in budgets_of(points["C"]):
            sizes = points["N"][budget.rows]
            n = np.geomspace(sizes.min(), sizes.max(), STEPS)
            at = {name: np.full(STEPS, np.exp(np.log(points[name][budget.rows]).mean())) for name in report.law.given}
            yield Line(n, *band(report, {**at, "C": np.full(STEPS, budget.flops), "N": n}), f"{budget.flops:.3g} FLOPs")
    else:
        along = np.geomspace(x.min(), x.max(), STEPS)
        # A law of every step follows the rates of the first run's schedule, and no mean rate.
        others = () if report.law.every_step else report.law.given
        at = {name: np.full(STEPS, np.exp(np.log(points[name]).mean())) for name in others}
        yield Line(along, *band(report, {**at, symbol: along}), "the law")


def words_of_x(report: Report) -> str:
    """What is drawn to the right, in words and units."""
    symbol, words = over(report), report.sample.words
    return f"{SPOKEN}: {words(report.law.explains)}" if symbol is None else words(symbol)
