"""Laws that are sums of products of powers, such as E + A / N^alpha + B / D^beta: their values and their fits.

The logarithm of every term is linear in the law's numbers, so that ln y = logsumexp over k of (terms_k @ point), with
terms (K, n, P) for K terms, n runs and P numbers. A number that several terms share is one column of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.descent import Model, descend, huber

Form = TypeVar("Form")
HUBER_DELTA = 0.01  # of ln(loss); seeds differ by less, so this is least squares but for runs that stand out
LOOK = 24  # starting points that are followed, of all that are tried
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

    @property
    def model(self) -> Model:
        """ln y at (S, P) points, (S, n), and its derivatives by the numbers, (S, n, P)."""
        return lambda points: log_sums(points, self.terms)

    def fit(self, y: np.ndarray) -> np.ndarray:
        """The point of the best law, (P,): the lowest of the starts are followed.

        Raises UserError for fewer runs than free numbers, and for y that are not positive.
        """
        (y,) = positive(1, y=y)
        if len(y) < self.free.sum():
            raise UserError(f"This fit has {self.free.sum()} free numbers and got {len(y)} runs. Add runs.")
        ln_y, once = np.log(y), np.ones((len(self.starts), len(y)))
        starts = self.starts + self.factors * float(ln_y.mean())
        order = np.argsort(huber(self.model(starts)[0] - ln_y, once, self.delta))[:LOOK]
        points, values = descend(self.model, ln_y, starts[order], once[order], self.free, self.delta)
        return points[int(np.argmin(values))]

    def refit(self, near: np.ndarray, y: np.ndarray, counts: np.ndarray) -> list[Form]:
        """The law of many sets of data, from the point of a similar one. y, counts: (sets, n), see law.Law.many."""
        starts = np.repeat(near[None], len(y), axis=0)
        parts = np.array_split(np.arange(len(y)), y.size // 20000 + 1)  # what fits into the cache
        return [
            self.read(point)
            for rows in parts
            for point in descend(self.model, np.log(y[rows]), starts[rows], counts[rows], self.free, self.delta)[0]
        ]

    def undetermined(self, point: np.ndarray) -> bool:
        """Whether the law can change and stay what it is at every run: its derivatives there depend on each other."""
        slopes = self.model(point[None])[1][0][:, self.free]
        lengths = np.linalg.norm(slopes, axis=0)
        return bool((lengths < 1e-12).any()) or float(np.linalg.svd(slopes / lengths, compute_uv=False)[-1]) < DEPENDENT


def log_sums(points: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln y at (S, P) points, (S, n), and its derivatives by the numbers, (S, n, P)."""
    logs = np.moveaxis(points @ terms.transpose(0, 2, 1), 0, 1)
    total = np.logaddexp.reduce(logs, axis=1)
    return total, np.einsum("skn,knp->snp", np.exp(logs - total[:, None]), terms)


def exp(value: float) -> float:
    """e to the value; infinite where that is too large, as of a resample that leaves a factor open."""
    return math.exp(value) if value < 700 else math.inf
