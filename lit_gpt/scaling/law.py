"""What a law is: words about it, what it reads of runs, and how it is fitted.

A law is a file of lit_gpt/scaling/laws, with `LAW` and `fit(data, fixed)`. Its data are columns by symbol, one entry
for each run; which column of lit_gpt.lab.runs stands behind a symbol is the choice of whoever fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError, did_you_mean

Data = Mapping[str, np.ndarray]  # symbol -> (runs,)
RUN = "run"  # the symbol of the run that a point of a curve is of; its points are resampled together


@dataclass(frozen=True)
class Fitted:
    """A law with the numbers that were found.

    numbers: parameters and what follows from them, as they are printed; NaN where the data do not determine one.
    curve: the explained column at other columns, (n,), NaN where the law says nothing. free: how many numbers the data
    determined. notes: what the numbers cannot say, in words. place: the columns that a budget of --predict means, such
    as the N and D of least loss. tables: title -> rows of cells, the first one of names, such as the optimum of each
    budget. run: of a resample, what a new run would show but for the noise of the explained column, (n,), where the law
    reads something that differs between runs, too; None where that is the curve.
    """

    numbers: Mapping[str, float]
    curve: Callable[[Data], np.ndarray]
    free: int
    notes: tuple[str, ...] = ()
    place: Callable[[float], Data] | None = None
    points: Data | None = None
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    run: Callable[[Data], np.ndarray] | None = None


@dataclass(frozen=True)
class Example:
    """Runs of a known law, by which benchmarks/coverage.py and tests judge a fit.

    numbers: the true ones, of those that a fit finds. data: columns of the law without noise. noise: standard deviation
    of what the law explains, of its logarithm where the law is relative; that of seeds, about. fixed: numbers to give.
    """

    numbers: Mapping[str, float]
    data: Data
    noise: float
    fixed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Law:
    """One form of curve.

    sentence, formula: for --help, the formula in ASCII. reads: symbol -> the column of lit_gpt.lab.runs.COLUMNS that it
    is unless another one is chosen; the last symbol is what the law explains, and a budget is of the first unless
    `budget` names a column. parameters: name -> in words. relative: whether residuals are of ln(y) rather than y.
    fixable: parameters that may be given (--fix c=0). labels: symbols whose columns may be words, which become numbers
    from 1 in the order of the runs. curves: whether it reads every logged step of a run instead of its end. every_step:
    whether it reads curves as they were logged, with the learning rate of each step, also of runs that have not ended;
    steps to come have a loss of NaN. designed: whether the runs are a design that a draw of them would break, so that
    intervals are from new noise on all of them. many: fits to `samples` sets of data at once, from (the fit to all
    data, data, fixed, the explained column (samples, runs), how often each run counts (samples, runs)); without it,
    `fit` is called for each. example: runs of known numbers.
    """

    sentence: str
    formula: str
    reads: Mapping[str, str]
    parameters: Mapping[str, str]
    fit: Callable[[Data, Mapping[str, float]], Fitted]
    relative: bool = False
    fixable: tuple[str, ...] = ()
    budget: str | None = None
    labels: tuple[str, ...] = ()
    curves: bool = False
    every_step: bool = False
    designed: bool = False
    many: Callable[[Fitted, Data, Mapping[str, float], np.ndarray, np.ndarray], list[Fitted | None]] | None = None
    example: Callable[[], Example] | None = None

    @property
    def explains(self) -> str:
        """The symbol of the explained column."""
        return list(self.reads)[-1]

    @property
    def given(self) -> tuple[str, ...]:
        """The symbols of the other columns."""
        return tuple(self.reads)[:-1]

    def budget_column(self, reads: Mapping[str, str]) -> str:
        """The column that a budget of --predict is of, where the symbols stand for these columns."""
        return self.budget or reads[self.given[0]]

    def refit(
        self, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
    ) -> list[Fitted | None]:
        """`fit` to each set of losses and of how often a run counts, (samples, runs); None where it refuses them."""
        return [self._refit(data, fixed, loss, count) for loss, count in zip(losses, counts)]

    def _refit(self, data: Data, fixed: Mapping[str, float], loss: np.ndarray, count: np.ndarray) -> Fitted | None:
        rows = np.repeat(np.arange(len(loss)), count.astype(int))
        try:
            return self.fit({**{name: column[rows] for name, column in data.items()}, self.explains: loss[rows]}, fixed)
        except UserError:
            return None

    def check_fixed(self, fixed: Mapping[str, float]) -> None:
        """Raise UserError for parameters that cannot be given."""
        for name in fixed:
            if name not in self.fixable:
                known = f"can be given: {', '.join(self.fixable)}" if self.fixable else "none can be given"
                raise UserError(
                    f"The parameter {name!r} of this law cannot be given.{did_you_mean(name, self.fixable)} Of its "
                    f"parameters {known}."
                )
