"""CSV files of runs that follow known laws, five sizes and three seeds, as studies have them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 0.003  # of the loss between seeds
A, B, C = 1e3, 0.15, 1.7  # L = A flops^-B + C


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One line for each run."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def ladder(speed_up: float = 1.0, sizes: int = 5, seeds: int = 3, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Runs of L = A (speed_up C)^-B + C with noise; more: the same cells of all of them."""
    rng = np.random.default_rng(start)
    return [
        {"flops": flops, "tokens": (flops / 6e7) ** 0.6, "depth": 8 + 4 * i, "seed": seed,
         "loss": A * (speed_up * flops) ** -B + C + rng.normal(0, NOISE), **more}
        for i, flops in enumerate(np.geomspace(1e18, 1e21, 5)[:sizes]) for seed in range(seeds)
    ]  # fmt: skip


def sweeps(best: dict[float, float], x: str, **more: Any) -> list[dict[str, Any]]:
    """Six rates around the best one of each x."""
    rng = np.random.default_rng(0)
    return [
        {x: at, "rate": rate, "loss": 3 + 0.04 * np.log(rate / middle) ** 2 + rng.normal(0, 0.001), **more}
        for at, middle in best.items() for rate in middle * 2.0 ** np.arange(-2.5, 2.6)
    ]  # fmt: skip


def isoflop() -> list[dict[str, Any]]:
    """Four budgets of five sizes around N* = 0.1 C^0.5."""
    rng = np.random.default_rng(0)
    return [
        {"flops": flops, "parameters": 0.1 * flops**0.5 * away, "tokens": flops**0.5 / 0.6 / away,
         "loss": A * flops**-B + C + 0.05 * np.log(away) ** 2 + rng.normal(0, NOISE)}
        for flops in np.geomspace(1e18, 1e20, 4) for away in np.exp(np.linspace(-1.4, 1.4, 5))
    ]  # fmt: skip
