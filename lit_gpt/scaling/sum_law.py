"""Sums of products of powers in the form of a law: what the joint laws of mixtures of experts share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lit_gpt.scaling._fit_data import NOTHING, far_off
from lit_gpt.scaling.law import Data, Fitted
from lit_gpt.scaling.sums import Problem


class SumLaw(NamedTuple):
    """problem: from the given columns. given: their symbols, in the order of its arguments and of the form's. others:
    what to add runs of, in words, where the numbers are open. The law explains L, and its last number and last term are
    an offset c.
    """

    problem: Callable[..., Problem[Any]]
    given: tuple[str, ...]
    others: str

    def fit(self, data: Data, fixed: Mapping[str, float]) -> Fitted:
        """The numbers by Huber's function of ln(predicted) - ln(loss); see sums.Problem. NaN where the runs leave them
        open. Runs that the fit does not heed are in the notes.
        """
        problem = self._problem(data)
        point = problem.fit(data["L"])
        logs, there, form = problem.terms @ point, problem.free.copy(), problem.read(point)
        if at_bound := float(np.exp(logs[-1]).max()) < NOTHING * float(data["L"].min()):
            there[-1], form = False, dataclasses.replace(form, c=0.0)
        if problem.undetermined(point, there):
            said = f"these runs leave the numbers open, as other laws fit as well: add runs with other {self.others}"
            return self._fitted(type(form)(*[math.nan] * len(there)), (said,))
        bound = "c is at its bound 0: the runs do not show where the fall ends"
        left, places = np.logaddexp.reduce(logs) - np.log(data["L"]), {name: data[name] for name in (*self.given, "L")}
        return self._fitted(form, ((bound,) if at_bound else ()) + far_off(left, int(there.sum()), places))

    def many(
        self, fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
    ) -> list[Fitted | None]:
        """The laws of many sets of losses; see law.Law.many."""
        problem = self._problem(data)
        return [self._fitted(law) for law in problem.refit(problem.fit(data["L"]), losses, counts)]

    def _problem(self, data: Data) -> Problem[Any]:
        return self.problem(*(data[symbol] for symbol in self.given))

    def _fitted(self, form: Any, notes: tuple[str, ...] = ()) -> Fitted:
        def curve(data: Data) -> np.ndarray:
            return form(*(data[symbol] for symbol in self.given))

        numbers = dataclasses.asdict(form)
        return Fitted(numbers, curve, len(numbers) - (form.c == 0), notes)
