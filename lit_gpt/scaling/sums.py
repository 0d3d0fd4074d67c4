"""Laws that are sums of products of powers, such as E + A / N^alpha + B / D^beta: their values and their fits.

The logarithm of every term is linear in the law's numbers, so that ln y = logsumexp over k of (terms_k @ point), with
terms (K, n, P) for K terms, n runs and P numbers. A number that several terms share is one column of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.descent import STEPS, Bend, Model, descend, huber

Form = TypeVar("Form")
HUBER_DELTA = 0.01  # of ln(loss); seeds differ by less, so this is least squares but for runs that stand out
FIRST, BEST = 20, 8  # steps from every start, and how many go on
VANISHED = math.log(0.01)  # share of y at which a term that is none is looked for again
DEPENDENT = 1e-7  # smallest singular value of unit derivatives that depend on each other


@dataclass(frozen=True)
class Problem(Generic[Form]):
    """A law over some runs. terms: (K, n, P). starts: (starts, P) points to descend from, for y of about 1.

    factors: (P,), 1 for numbers that are logarithms in the unit of y, 0 for others. read: the law at a point. free:
    (P,), the numbers that may move; the others keep what the starts give them. delta: of Huber's function of ln y.
    """

    terms: np.ndarray
    starts: np.ndarray
    factors: np.ndarray
    read: Callable[[np.ndarray], Form]
    free: np.ndarray
    delta: float = HUBER_DELTA

    @cached_property
    def model(self) -> Model:
        """ln y at (S, P) points, for descend."""
        products = (self.terms[..., None] * self.terms[..., None, :]).reshape(*self.terms.shape[:2], -1)
        return lambda points: log_sums(points, self.terms, products)

    def fit(self, y: np.ndarray) -> np.ndarray:
        """The point of the best law, (P,). The lowest start is often in one valley, which is not always the deepest.

        Raises UserError for fewer runs than free numbers, and for y that are not positive.
        """
        (y,) = positive(1, y=y)
        if len(y) < self.free.sum():
            raise UserError(f"This fit has {self.free.sum()} free numbers and got {len(y)} runs. Add runs.")
        ln_y, once = np.log(y), np.ones((len(self.starts), len(y)))
        starts = self.starts + self.factors * float(ln_y.mean())
        values = huber(self.model(starts)[0] - ln_y, once, self.delta)
        for few, steps in ((len(starts), FIRST), (BEST, STEPS)):  # most starts end in one of a few valleys
            order = np.argsort(values, kind="stable")[:few]
            starts, values = descend(self.model, ln_y, starts[order], once[order], self.free, self.delta, steps)
        return starts[int(np.argmin(values))]

    def refit(self, near: np.ndarray, y: np.ndarray, counts: np.ndarray) -> list[Form]:
        """The law of many sets of data, from the point of a similar one. y, counts: (sets, n), see law.Law.many."""
        return [self.read(point) for point in self.points(near, y, counts)]

    def points(self, near: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The points of these laws, (sets, P). A term that has vanished from the similar law may be in others."""
        least = np.where(self.free & (self.factors > 0), float(np.log(y).mean()) + VANISHED, -np.inf)
        starts = np.repeat(np.maximum(near, least)[None], len(y), axis=0)
        parts = np.array_split(np.arange(len(y)), y.size // 20000 + 1)  # what fits into the cache
        return np.concatenate(
            [
                descend(self.model, np.log(y[rows]), starts[rows], counts[rows], self.free, self.delta)[0]
                for rows in parts
            ]
        )

    def undetermined(self, point: np.ndarray, of: np.ndarray | None = None) -> bool:
        """Whether the law can change and stay what it is at every run: its derivatives there depend on each other.

        of: (P,), the numbers that are asked about; the free ones unless others are given.
        """
        slopes = self.model(point[None])[1][0][:, self.free if of is None else of]
        lengths = np.linalg.norm(slopes, axis=0)
        if len(slopes) < slopes.shape[1] or (lengths < 1e-12).any():
            return True
        return float(np.linalg.svd(slopes / lengths, compute_uv=False)[-1]) < DEPENDENT


def log_sums(points: np.ndarray, terms: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray, Bend]:
    """ln y at (S, P) points, (S, n), its derivatives by the numbers, (S, n, P), and its bend; see descend.

    products: (K, n, P * P), of every two numbers of each term.
    """
    logs = points @ terms.transpose(0, 2, 1)
    highest = logs.max(0)
    shares = np.exp(logs - highest)
    total = shares.sum(0)
    shares /= total
    slopes = np.einsum("ksn,knp->snp", shares, terms)

    def bend(factors: np.ndarray) -> np.ndarray:
        within = ((shares * factors) @ products).sum(0).reshape(len(points), terms.shape[-1], -1)
        return within - (slopes * factors[..., None]).transpose(0, 2, 1) @ slopes

    return highest + np.log(total), slopes, bend


def centred_logs(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean logarithm, and the logarithms less that: a fit in them does not depend on units."""
    middle = float(np.log(x).mean())
    return middle, np.log(x) - middle


def exp(value: float) -> float:
    """e to the value; infinite where that is too large, as of a resample that leaves a factor open."""
    return math.exp(value) if value < 700 else math.inf
