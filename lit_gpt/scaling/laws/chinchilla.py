"""Chinchilla's third approach: one law of parameters and tokens, L = E + A / N^alpha + B / D^beta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import NOTHING, far_off, positive, untested
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.sums import Problem, centred_logs, exp

HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
STEEP = 2.0  # the largest exponent among the papers' starting points
EXPONENTS = 0.1, 0.3, 0.7, 1.3, 2.0  # of starting points, in the range of the papers'
SHARES = (0.2, 0.2, 0.6), (0.05, 0.4, 0.55), (0.4, 0.05, 0.55), (0.4, 0.4, 0.2), (0.05, 0.05, 0.9)  # of A, B and E
NUMBERS = "A", "B", "E", "alpha", "beta"
HELD = {"E": 2, "alpha": 3, "beta": 4}  # parameters that may be given, and their places


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, N parameters, D tokens (Hoffmann et al. 2022). notes: see PowerLaw."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        n, d = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss at flops = 6 N D; Hoffmann et al. 2022, equation 4."""
        total = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return g * (flops / 6) ** (self.beta / total), (flops / 6) ** (self.alpha / total) / g


BESIROGLU = Chinchilla(482.01, 2085.43, 1.8169, 0.3478, 0.3659)  # 2404.10102, the replication


def fit_chinchilla(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, fixed: Mapping[str, float] | None = None
) -> Chinchilla:
    """Approach 3: minimise the sum of Huber(1e-3) of ln(predicted) - ln(loss).

    n, d, loss: 1-D, one entry per run. The sum, not the mean: the mean makes optimizers stop early, which is how the
    replication explains Hoffmann's intervals. fixed: E, alpha or beta where it is known.
    A term that explains nothing, or grows, has NaN for its numbers; that and runs far from the law are in `notes`.
    Raises UserError for fewer than five runs, three different N or D, one ratio of D to a power of N in all of them (N
    and D cannot be told apart then), and a given number that cannot be.
    """
    n, d, loss = positive(3, N=n, D=d, loss=loss)
    _designed(n, d)
    for name, value in (fixed or {}).items():
        below = float(loss.min()) if name == "E" else math.inf
        if not 0 < value < below:
            raise UserError(f"{name} = {value:g} is no law of these runs. Give a number above 0 and below {below:.4g}.")
    problem = chinchilla_problem(n, d, fixed or {})
    return _judged(problem, problem.fit(loss), n, d, loss)


def chinchilla_problem(n: np.ndarray, d: np.ndarray, fixed: Mapping[str, float]) -> Problem[Chinchilla]:
    """The five numbers ln A, ln B, ln E, alpha and beta, the first two at the middle of ln N and ln D.

    fixed: see fit_chinchilla.
    """
    (mid_n, u), (mid_d, v) = centred_logs(n), centred_logs(d)
    one, zero = np.ones_like(u), np.zeros_like(u)
    columns = (one, zero, zero, -u, zero), (zero, one, zero, zero, -v), (zero, zero, one, zero, zero)
    starts = np.array([(*np.log(s), p, q) for s in SHARES for p in EXPONENTS for q in EXPONENTS])
    free, factors = np.ones(5, dtype=bool), np.array([1, 1, 1, 0, 0])
    for name, value in fixed.items():
        at = HELD[name]
        starts[:, at], free[at], factors[at] = math.log(value) if name == "E" else value, False, 0

    def read(point: np.ndarray) -> Chinchilla:
        a, b, e, alpha, beta = (float(x) for x in point)
        return Chinchilla(exp(a + alpha * mid_n), exp(b + beta * mid_d), exp(e), alpha, beta)

    terms = np.stack([np.stack(column, 1) for column in columns])
    return Problem(terms, starts, factors, read, free, HUBER_DELTA)


def _designed(n: np.ndarray, d: np.ndarray) -> None:
    """Raise UserError for runs that cannot tell five numbers."""
    if (runs := len(np.unique(np.stack([n, d]), axis=1).T)) < 5:
        raise UserError(f"This fit needs 5 different runs, got {runs}. Add runs.")
    if abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1])) > 1 - 1e-4:
        raise UserError(
            "In all runs D is one power of N (such as 20 tokens per parameter), so what N and D do cannot be told "
            "apart. Add runs with other ratios."
        )


def _judged(
    problem: Problem[Chinchilla], point: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray
) -> Chinchilla:
    """The law at a point of the problem, with what is not determined as NaN and in words."""
    logs, ln_loss, free = problem.terms @ point, np.log(loss), int(problem.free.sum())
    residual, law = np.abs(np.logaddexp.reduce(logs) - ln_loss), problem.read(point)
    values, none, there = {name: getattr(law, name) for name in NUMBERS}, math.nan, problem.free.copy()
    notes = [*untested(float((residual**2).sum()), ln_loss, free)]
    for i, (name, exponent, what) in enumerate((("A", "alpha", "N"), ("B", "beta", "D"))):
        falls = f"the loss does not fall with {what} in these runs"
        if np.ptp(term := np.exp(logs[i])) < NOTHING * loss.min():  # a constant, which is part of E
            values |= {name: none, exponent: none, "E": values["E"] + float(term.mean())}
            notes.append(f"{falls}, so {name} and {exponent} are not determined")
            there[[i, 3 + i]] = False
        elif point[3 + i] <= 0:
            values = dict.fromkeys(values, none)
            notes.append(f"{falls} but rises, so this is not their law")
        elif values[exponent] > STEEP:
            notes.append(
                f"{exponent} is above {STEEP:g}: only the smallest {what} tell it. Add runs with smaller {what}"
            )
    at_bound = values["E"] < NOTHING * loss.min()
    there[2] &= not at_bound
    if problem.undetermined(point, there):
        values = dict.fromkeys(values, none)
        notes.append("these runs leave the five numbers open, as other laws fit as well: add runs with other N and D")
    elif at_bound:
        values["E"] = 0.0
        notes.append("E is at its bound 0: the runs do not show where the fall ends")
    notes += far_off(residual, free, {"N": n, "D": d})
    return Chinchilla(**values, notes=tuple(notes))


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """See fit_chinchilla. fixed: E, alpha or beta."""
    return _fitted(fit_chinchilla(data["N"], data["D"], data["L"], fixed=fixed), fixed)


def _fitted(law: Chinchilla, fixed: Mapping[str, float]) -> Fitted:
    numbers = {name: getattr(law, name) for name in NUMBERS}
    numbers["N_exponent"] = law.beta / (law.alpha + law.beta)
    numbers["D_exponent"] = law.alpha / (law.alpha + law.beta)

    def place(budget: float) -> Data:
        n, d = law.optimum(budget)
        return {"N": np.array([n]), "D": np.array([d])}

    free = 5 - len(fixed) - (law.E == 0)
    return Fitted(numbers, lambda data: law(data["N"], data["D"]), free, law.notes, place)


def many(
    found: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The laws of many sets of losses; see law.Law.many. None: a resample that leaves the law open."""
    problem = chinchilla_problem(data["N"], data["D"], fixed)
    laws = list[Fitted | None]()
    for point, loss, count in zip(problem.points(problem.fit(data["L"]), losses, counts), losses, counts):
        used = count > 0
        some = replace(problem, terms=problem.terms[:, used])
        law = _judged(some, point, data["N"][used], data["D"][used], loss[used])
        laws.append(_fitted(law, fixed) if math.isfinite(law.A + law.B + law.E) else None)
    return laws


def _example() -> Example:
    """The replication's law (2404.10102) at 6 sizes and 6 budgets."""
    n, d = np.array(list(product(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 6)))).T
    data = {"N": n, "D": d, "L": BESIROGLU(n, d)}
    return Example(_fitted(BESIROGLU, {}).numbers, data, 0.004)


LAW = Law(
    sentence="Loss over parameters and tokens, from runs of several ratios of them (Hoffmann et al. 2022, approach 3).",
    formula="L = E + A / N^alpha + B / D^beta; the optimum of a budget C = 6 N D has N* ~ C^(beta / (alpha + beta))",
    reads={"N": "parameters", "D": "tokens", "L": "loss"},
    parameters={
        "A": "factor of parameters",
        "B": "factor of tokens",
        "E": "irreducible loss",
        "alpha": "exponent of parameters",
        "beta": "exponent of tokens",
        "N_exponent": "N* grows as compute to this power",
        "D_exponent": "D* grows as compute to this power",
    },
    fit=fit,
    relative=True,
    fixable=tuple(HELD),
    budget="flops_6nd",
    many=many,
    example=_example,
)
