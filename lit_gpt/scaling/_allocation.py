"""How budgets of compute are best shared between parameters and tokens: power laws of N*, D* and the loss there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lit_gpt.scaling.fit import power_laws
from lit_gpt.scaling.law import Data

NAMES = ("N_factor", "N_exponent", "D_factor", "D_exponent", "a", "b", "c")
WORDS = {
    "N_factor": "factor of the optimal parameters N*",
    "N_exponent": "N* grows as compute to this power",
    "D_factor": "factor of the optimal tokens D*",
    "D_exponent": "D* grows as compute to this power",
    "a": "factor of the loss at the optimum",
    "b": "exponent of the loss at the optimum",
    "c": "offset of the loss at the optimum",
}
FORMULA = "N* = N_factor C^N_exponent, D* = D_factor C^D_exponent, L* = a C^-b + c"
ENOUGH = 3  # budgets from which the loss has an offset unless one is given; two do not determine three numbers


def shared(
    budgets: np.ndarray,
    optima: tuple[np.ndarray, np.ndarray, np.ndarray],
    used: np.ndarray,
    offset: float | None,
) -> np.ndarray:
    """The numbers of NAMES for each sample, (samples, 7); NaN where its optima do not determine one.

    budgets: (budgets,), in FLOPs. optima: ln N*, ln D* and loss of each, (samples, budgets). used: which of them count.
    offset: c; None where it is fitted.
    """
    enough = used.sum(1) >= 2
    used = used | ~enough[:, None]
    ln_n, ln_d, loss = (np.where(used, values, 1.0) for values in optima)
    trends = [v for values in (ln_n, ln_d) for v in _trend(np.log(budgets), values, used.astype(float))]
    laws = power_laws(budgets, loss, used.astype(float), offset=offset)
    found = np.stack([*trends, *np.array([[law.a, law.b, law.c] for law in laws]).T], -1)
    return np.where(enough[:, None], found, np.nan)


def _trend(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor and exponent of a line through (x, y), logarithms, for each sample."""
    total = weight.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_mean, y_mean = weight @ x / total, (weight * y).sum(1) / total
        away = x - x_mean[:, None]
        slope = (weight * away * y).sum(1) / (weight * away**2).sum(1)
    return np.exp(np.clip(y_mean - slope * x_mean, -700, 700)), np.where(np.isfinite(slope), slope, np.nan)


def offset_of(fixed: Mapping[str, float], budgets: int) -> float | None:
    """The offset of the loss: what was given, 0 where the budgets are few, or None for what is fitted."""
    return fixed.get("c", None if budgets >= ENOUGH else 0.0)


def optimum(numbers: Mapping[str, float], budget: float) -> Data:
    """C, N and D of the least loss at a budget."""
    n = numbers["N_factor"] * budget ** numbers["N_exponent"]
    d = numbers["D_factor"] * budget ** numbers["D_exponent"]
    return {"C": np.array([budget]), "N": np.array([n]), "D": np.array([d])}


def least_loss(numbers: Mapping[str, float], budgets: np.ndarray) -> np.ndarray:
    """The loss at the optimum of each budget."""
    return numbers["a"] * budgets ** -numbers["b"] + numbers["c"]


def table(
    budgets: np.ndarray, optima: tuple[np.ndarray, np.ndarray, np.ndarray], used: np.ndarray, runs: Sequence[int]
) -> list[tuple[str, ...]]:
    """A line for each budget: its optimum (budgets,), and how many runs it has."""
    rows = [("budget (FLOPs)", "runs", "N*", "D*", "D* / N*", "loss", "used")]
    for budget, n, d, loss, counts, of in zip(budgets, *optima, used, runs):
        sizes = f"{math.exp(n):.4g}", f"{math.exp(d):.4g}", f"{math.exp(d - n):.3g}"
        rows.append((f"{budget:.4g}", str(of), *sizes, f"{loss:.4f}", "yes" if counts else "no"))
    return rows
