"""The critical batch: how many steps, and how many tokens, a loss costs at each batch.

With B the batch, S steps and D = B S tokens to one loss: (S / S_min - 1) (D / D_min - 1) = 1 (arXiv:1812.06162), which
is S = S_min + D_min / B. B_crit = D_min / S_min costs twice the least of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import far_off, positive, untested
from lit_gpt.scaling.fit import PowerLaw, fit_power_law, power_laws
from lit_gpt.scaling.sums import Problem, exp
from lit_gpt.scaling.sweeps import SAME, groups

HUBER_DELTA = 0.05  # of ln(steps), which differ by a few percent between seeds
OVERHEAD = 1.2  # arXiv:2410.21676: the critical batch needs 20% more steps than linear scaling would
NEAR = 0.15  # share of the target within which the loss of a curve is used to tell its steps


@dataclass(frozen=True)
class Hyperbola:
    """Steps to a loss at batch B: least_steps + least_tokens / B."""

    least_steps: float
    least_tokens: float

    def __call__(self, batch: np.ndarray | float) -> np.ndarray:
        return self.least_steps + self.least_tokens / np.asarray(batch, dtype=np.float64)

    @property
    def critical(self) -> float:
        """The batch of twice the least steps and twice the least tokens."""
        return self.least_tokens / self.least_steps if self.least_steps else math.inf

    def with_overhead(self, best: float) -> float:
        """The largest batch of at most OVERHEAD times the steps of linear scaling from batch `best`.

        arXiv:2410.21676: with S = a + b / B it is b / (5 a) + 1.2 best, where the paper's best is 256 sequences.
        """
        return (OVERHEAD - 1) * self.critical + OVERHEAD * best


def hyperbola_problem(batch: np.ndarray) -> Problem[Hyperbola]:
    """Steps to one loss, for Huber's fit of ln(steps). Raises UserError for fewer than three batches."""
    batch, _ = positive(3, batch=batch, steps=np.ones_like(batch))
    middle = float(np.log(batch).mean())
    one, zero, fall = np.ones_like(batch), np.zeros_like(batch), middle - np.log(batch)
    terms = np.stack([np.stack([one, zero, zero], 1), np.stack([zero, one, fall], 1)])
    starts = np.array([(math.log(s), math.log(1 - s), 1.0) for s in (0.02, 0.2, 0.5, 0.8, 0.98)])

    def read(point: np.ndarray) -> Hyperbola:
        return Hyperbola(exp(point[0]), exp(point[1] + middle))

    return Problem(terms, starts, np.array([1, 1, 0]), read, np.array([True, True, False]), HUBER_DELTA)


def judged(found: Hyperbola, batch: np.ndarray, steps: np.ndarray) -> tuple[Hyperbola, tuple[str, ...]]:
    """The hyperbola, with NaN for what the runs do not determine, and what it cannot say."""
    least_steps, least_tokens, notes = found.least_steps, found.least_tokens, list[str]()
    if least_steps < 1e-6 * steps.min():
        notes.append("steps fall as fast as the batch rises, so no batch was too large: add runs with larger batches")
        least_steps = math.nan
    elif least_tokens < 1e-6 * (batch * steps).min():
        notes.append("steps do not fall with the batch, so every batch was too large: add runs with smaller batches")
        least_tokens = math.nan
    else:
        critical = least_tokens / least_steps
        if not batch.min() <= critical <= batch.max():
            where = f"{batch.min():.4g} to {batch.max():.4g}"
            notes.append(f"the critical batch {critical:.4g} lies outside the batches of the runs, {where}: add others")
    left = np.log(found(batch)) - np.log(steps)
    notes += untested(float((left**2).sum()), np.log(steps), 2)
    notes += far_off(left, 2, {"batch": batch, "steps": steps})
    return Hyperbola(least_steps, least_tokens), tuple(notes)


@dataclass(frozen=True)
class Reached:
    """What a loss costs at each batch: the steps at which a power law of its own reaches the target.

    batches, steps: one entry each. near: (batches, runs), the runs whose loss was near the target, which the law is of.
    """

    target: float
    batches: np.ndarray
    curves: tuple[PowerLaw, ...]
    near: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        return np.array([curve.inverse(self.target) for curve in self.curves])

    def loss(self, batch: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The loss by the curve of each batch; NaN far from the target, and for a batch without a curve."""
        found = np.full(len(batch), np.nan)
        for own, curve in zip(self.batches, self.curves):
            here = np.abs(np.log(batch / own)) < SAME
            found[here] = curve(steps[here])
        return np.where(np.abs(found - self.target) <= NEAR * self.target, found, np.nan)


def steps_to_loss(
    batch: np.ndarray, steps: np.ndarray, loss: np.ndarray, target: float | None = None
) -> tuple[Reached, tuple[str, ...]]:
    """The steps at which each batch reaches a loss, by a power law with offset through its points near that loss.

    The points of a batch are its runs of several budgets, each with its rate decayed (arXiv:2505.13738), or the curve
    of a run at a constant rate. target: None is the lowest loss that every batch reaches. The words are of batches that
    tell nothing. Raises UserError where fewer than three batches reach the target.
    """
    batch, steps, loss = positive(1, batch=batch, steps=steps, loss=loss)
    parts = groups(batch)
    target = max(float(loss[here].min()) for here in parts) if target is None else target
    batches, curves, near, notes = list[float](), list[PowerLaw](), list[np.ndarray](), list[str]()
    for here in parts:
        own, close = float(np.exp(np.log(batch[here]).mean())), here & (np.abs(loss - target) <= NEAR * target)
        if not loss[here].min() <= target <= loss[here].max():
            notes.append(f"the runs of batch {own:.4g} have no loss on both sides of {target:.4g}, and are left out")
        elif len(np.unique(steps[close])) < 3:
            notes.append(f"batch {own:.4g} has fewer than three points near the loss {target:.4g}, and is left out")
        elif not math.isfinite((curve := fit_power_law(steps[close], loss[close])).inverse(target)):
            notes.append(f"the losses of batch {own:.4g} have no power law near {target:.4g}, and are left out")
        else:
            batches, curves, near = [*batches, own], [*curves, curve], [*near, close]
    if len(batches) < 3:
        few = f"{len(batches)} batches reach the loss {target:.4g}, and this needs 3. {'; '.join(notes)}"
        raise UserError(f"{few.strip()}.".replace("..", "."))
    return Reached(target, np.array(batches), tuple(curves), np.array(near)), tuple(notes)


def resampled(reached: Reached, steps: np.ndarray, losses: np.ndarray, counts: np.ndarray) -> list[Reached]:
    """The same for many sets of data; losses, counts: (sets, runs). A batch without runs in a set has NaN."""
    of_batches = list[list[PowerLaw]]()
    for near in reached.near:
        there = np.atleast_1d(counts[:, near].any(1))
        laws = power_laws(steps[near], losses[:, near], np.where(there[:, None], counts[:, near], 1.0))
        of_batches.append([law if here else PowerLaw(math.nan, math.nan, math.nan) for law, here in zip(laws, there)])
    return [replace(reached, curves=curves) for curves in zip(*of_batches)]
