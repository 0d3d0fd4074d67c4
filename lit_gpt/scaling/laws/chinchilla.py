"""Chinchilla's third approach: one law of parameters and tokens, L = E + A / N^alpha + B / D^beta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive, untested
from lit_gpt.scaling._huber import HUBER_DELTA, STEPS, Design, minimise
from lit_gpt.scaling.descent import huber
from lit_gpt.scaling.law import Data, Example, Fitted, Law

DEPENDENT = 1e-6  # smallest singular value of unit vectors that depend on each other
FAR = 6.0  # robust standard deviations (1.4826 median |residual|) from which a run is far from the law
STEEP = 2.0  # the largest exponent among the papers' starting points
NOTHING = 1e-5  # share of the loss below which a term of the law explains nothing
FIRST, BEST = 40, 8  # steps from every start, and how many go on
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


# Hoffmann et al. 2203.15556 with the digits that the paper's table rounds away
HOFFMANN = Chinchilla(406.4015, 410.7229, 1.693372, 0.33917084, 0.2849083)
BESIROGLU = Chinchilla(482.01, 2085.43, 1.8169, 0.3478, 0.3659)  # 2404.10102, the replication


def fit_chinchilla(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, starts: int = 125, fixed: Mapping[str, float] | None = None
) -> Chinchilla:
    """Approach 3: minimise the sum of Huber(1e-3) of ln(predicted) - ln(loss).

    n, d, loss: 1-D, one entry per run. The sum, not the mean: the mean makes optimizers stop
    early, which is how the replication explains Hoffmann's intervals. Of the papers' grid of
    4500 starting points the best for each E, alpha and beta, or the `starts` lowest of these 125, are followed by
    Newton's method: the lowest of all 4500 are often in one valley, which is not always the deepest.
    fixed: E, alpha or beta where it is known.
    A term that explains nothing, or grows, has NaN for its numbers; that and runs far from the law are in `notes`.
    Raises UserError for fewer than five runs, three different N or D, and one ratio of D to a power of N in all of them
    (N and D cannot be told apart then).
    """
    n, d, loss = positive(3, N=n, D=d, loss=loss)
    fixed = fixed or {}
    _designed(n, d)
    unit = float(np.log(loss).mean())  # the starting points are for losses of about 1
    ln_n, ln_d, ln_loss = np.log(n), np.log(d), np.log(loss) - unit
    design, once = Design(ln_n, ln_d), np.ones(len(n))
    places = {name: math.log(value) - unit if name == "E" else value for name, value in fixed.items()}
    ranked = _starts(design, ln_loss, places)[:starts]
    found = ranked
    for few, steps in ((len(ranked), FIRST), (BEST, STEPS)):  # most starts end in one of a few valleys
        lowest = np.argsort(_objective(design, found, ln_loss), kind="stable")[:few]
        found, _ = minimise(found[lowest], ln_n, ln_d, ln_loss, once, _held(fixed), steps)
    best = found[np.argmin(_objective(design, found, ln_loss))]
    return _judged(best + np.array([unit] * 3 + [0, 0]), ln_n, ln_d, ln_loss + unit, 5 - len(fixed))


def _starts(design: Design, ln_loss: np.ndarray, fixed: Mapping[str, float]) -> np.ndarray:
    """The papers' grid: of each e, alpha and beta the best a and b, the lowest objective first, (125, 5)."""
    tens, halves = np.arange(0, 26, 5.0), np.arange(0, 2.01, 0.5)
    grid = np.array(list(product(np.arange(-1, 1.01, 0.5), halves, halves, tens, tens)))[:, [3, 4, 0, 1, 2]]
    grid[:, _held(fixed)] = list(fixed.values())
    values = _objective(design, grid, ln_loss).reshape(125, 36)
    best = grid.reshape(125, 36, 5)[np.arange(125), values.argmin(1)]
    return best[np.argsort(values.min(1))]


def _held(fixed: Mapping[str, float]) -> list[int]:
    return [HELD[name] for name in fixed]


def _objective(design: Design, points: np.ndarray, ln_loss: np.ndarray) -> np.ndarray:
    return huber(design.terms(design.inner(points))[1] - ln_loss, np.ones_like(ln_loss), HUBER_DELTA)


def _designed(n: np.ndarray, d: np.ndarray) -> None:
    """Raise UserError for runs that cannot tell five numbers."""
    if (runs := len(np.unique(np.stack([n, d]), axis=1).T)) < 5:
        raise UserError(f"This fit needs 5 different runs, got {runs}. Add runs.")
    if abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1])) > 1 - 1e-4:
        raise UserError(
            "In all runs D is one power of N (such as 20 tokens per parameter), so what N and D do cannot be told "
            "apart. Add runs with other ratios."
        )


def _judged(point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray, free: int) -> Chinchilla:
    """The law at (a, b, e, alpha, beta), with what is not determined as NaN and in words."""
    design = Design(ln_n, ln_d)
    shares, ln_sum = (values[..., 0, :] for values in design.terms(design.inner(point[None])))
    residual = np.abs(ln_sum - ln_loss)
    a, b, e, alpha, beta = (float(v) for v in point)
    factors = {name: math.exp(v) if v < 700 else math.inf for name, v in (("A", a), ("B", b), ("E", e))}
    values, none = {**factors, "alpha": alpha, "beta": beta}, math.nan
    notes = [*untested(float((residual**2).sum()), ln_loss, free)]
    for i, (name, exponent, what) in enumerate((("A", "alpha", "N"), ("B", "beta", "D"))):
        falls = f"the loss does not fall with {what} in these runs"
        if np.ptp(shares[i]) < NOTHING:  # a constant, which is part of E
            values |= {name: none, exponent: none, "E": values["E"] + float((shares[i] * np.exp(ln_sum)).mean())}
            notes.append(f"{falls}, so {name} and {exponent} are not determined")
        elif point[3 + i] <= 0:
            values = dict.fromkeys(values, none)
            notes.append(f"{falls} but rises, so this is not their law")
        elif values[exponent] > STEEP:
            notes.append(
                f"{exponent} is above {STEEP:g}: only the smallest {what} tell it. Add runs with smaller {what}"
            )
    if _open(shares, ln_sum, ln_n, ln_d):
        values = dict.fromkeys(values, none)
        notes.append("these runs leave the five numbers open, as other laws fit as well: add runs with other N and D")
    elif values["E"] < NOTHING * math.exp(ln_loss.min()):
        values["E"] = 0.0
        notes.append("E is at its bound 0: the runs do not show where the fall ends")
    far = residual > max(FAR * 1.4826 * _typical(residual, free), 1e-6)
    if far.any():
        runs = "; ".join(f"N = {math.exp(x):.4g}, D = {math.exp(z):.4g}" for x, z in zip(ln_n[far], ln_d[far]))
        notes.append(f"{int(far.sum())} of {len(far)} runs are far from the law: {runs}. Check them")
    return Chinchilla(**values, notes=tuple(notes))


def _typical(residual: np.ndarray, parameters: int) -> float:
    """The median residual of the runs that the fit does not go through, as Huber's does for one per parameter."""
    beyond = np.sort(residual)[parameters:]
    return float(np.median(beyond)) if len(beyond) else math.inf


def _open(shares: np.ndarray, ln_sum: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray) -> bool:
    """Whether the law can change and stay what it is at every run: its derivatives there depend on each other."""
    if shares[:2].max(1).min() < NOTHING:  # a term that is not there
        return False
    by_exponent = shares[0] * (ln_n - ln_n.mean()), shares[1] * (ln_d - ln_d.mean())
    slopes = np.stack([shares[0], shares[1], np.exp(ln_sum.min() - ln_sum), *by_exponent])
    slopes /= np.linalg.norm(slopes, axis=1, keepdims=True)
    return float(np.linalg.svd(slopes, compute_uv=False)[-1]) < DEPENDENT


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """See fit_chinchilla. fixed: E, alpha or beta."""
    return _fitted(fit_chinchilla(data["N"], data["D"], data["L"], fixed=fixed), fixed)


def _fitted(law: Chinchilla, fixed: Mapping[str, float]) -> Fitted:
    numbers = {name: getattr(law, name) for name in ("A", "B", "E", "alpha", "beta")}
    numbers["N_exponent"] = law.beta / (law.alpha + law.beta)
    numbers["D_exponent"] = law.alpha / (law.alpha + law.beta)

    def place(budget: float) -> Data:
        n, d = law.optimum(budget)
        return {"N": np.array([n]), "D": np.array([d])}

    free = 5 - len(fixed) - (law.E == 0)
    return Fitted(numbers, lambda data: law(data["N"], data["D"]), free, law.notes, place)


def many(
    found: Fitted, data: Data, fixed: Mapping[str, float], loss: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The law of each of `samples` losses (samples, runs), every run as often as counts (samples, runs) say.

    All are followed from the fit to all data at once. None: a resample that the law refuses, or leaves open.
    """
    numbers = [found.numbers[name] for name in ("A", "B", "E", "alpha", "beta")]
    if not all(math.isfinite(v) and v > 0 for v in numbers) or (loss <= 0).any():
        return [_one(data, fixed, y, c) for y, c in zip(loss, counts)]
    start = np.array([*np.log(numbers[:3]), *numbers[3:]])
    ln_n, ln_d = np.log(data["N"]), np.log(data["D"])
    points, _ = minimise(np.tile(start, (len(loss), 1)), ln_n, ln_d, np.log(loss), counts, _held(fixed))
    laws: list[Fitted | None] = []
    for point, y, count in zip(points, loss, counts):
        used = count > 0
        law = _judged(point, ln_n[used], ln_d[used], np.log(y[used]), 5 - len(fixed))
        laws.append(_fitted(law, fixed) if math.isfinite(law.A + law.B + law.E) else None)
    return laws


def _one(data: Data, fixed: Mapping[str, float], loss: np.ndarray, count: np.ndarray) -> Fitted | None:
    rows = np.repeat(np.arange(len(loss)), count.astype(int))
    try:
        found = fit({"N": data["N"][rows], "D": data["D"][rows], "L": loss[rows]}, fixed)
    except UserError:
        return None
    return found if all(math.isfinite(v) for v in found.numbers.values()) else None


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
