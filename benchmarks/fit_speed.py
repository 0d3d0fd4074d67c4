"""How long do the intervals of a law take? On one core, for the number of runs that a study has.

    python benchmarks/fit_speed.py --json fit_speed.json

Chinchilla's law on 240 runs is the published fit's size (Besiroglu et al. 2404.10102; their runs are not here, so these
are drawn from their law with about their residuals). --bfgs N also times scipy's BFGS, started at the fit to all runs,
on N of the same resamples, and prints how far its points are from ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.scaling.descent import huber
from lit_gpt.scaling.fit import PowerLaw
from lit_gpt.scaling.intervals import draw, noise_of
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, chinchilla_problem

RESIDUAL = 0.0047  # mean |residual| of the published fit: its objective 1.018e-3 over 240 runs, with Huber's 1e-3


def published(runs: int = 240, seed: int = 0) -> Data:
    """Runs in the published ranges of N, D and residuals."""
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(np.log(5.73e7), np.log(1.618e10), runs)), np.exp(rng.uniform(20.52, 26.49, runs))
    return {"N": n, "D": d, "L": BESIROGLU(n, d) * np.exp(rng.laplace(0, RESIDUAL, runs))}


def ladder(runs: int, seed: int = 0) -> Data:
    """Runs of growing compute with the noise of seeds."""
    x = np.geomspace(1e18, 1e21, runs)
    return {"x": x, "y": PowerLaw(1e3, 0.15, 1.7)(x) + np.random.default_rng(seed).normal(0, 0.003, runs)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def measure(name: str, data: Data, samples: int) -> dict[str, Any]:
    """The time of a fit and of its resamples."""
    law = law_named(name)
    fit, fitted = timed(lambda: law.fit(data, {}))
    resamples, drawn = timed(lambda: draw(law, fitted, data, {}, noise_of(law, fitted, data), samples))
    runs = len(data[law.explains])
    found = {"law": name, "runs": runs, "fit_s": fit, "samples": samples, "resamples_s": resamples}
    return found | {"skipped": drawn.skipped}


def beside_bfgs(count: int) -> dict[str, Any]:
    """Seconds of scipy's BFGS for one resample, and how far its points and ours are apart."""
    try:
        from scipy.optimize import minimize as bfgs
    except ImportError as missing:
        raise UserError("--bfgs needs scipy. Type: pip install scipy") from missing
    data = published()
    problem = chinchilla_problem(data["N"], data["D"], {})
    ln_y, start = np.log(data["L"]), problem.fit(data["L"])
    counts = np.random.default_rng(0).multinomial(240, np.full(240, 1 / 240), count).astype(float)
    ours = problem.points(start, np.tile(data["L"], (count, 1)), counts)

    def objective(point: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
        said, slopes, _ = problem.model(point[None])
        left = said[0] - ln_y
        pull = weight * np.clip(left, -problem.delta, problem.delta)
        return float(huber(left, weight, problem.delta)), pull @ slopes[0]

    options = {"gtol": 1e-10}  # gradients are of the size of Huber's 1e-3: the default stops early
    seconds, theirs = timed(
        lambda: [bfgs(objective, start, (w,), method="BFGS", jac=True, options=options).x for w in counts]
    )
    return {"bfgs_s": seconds / count, "largest_difference": float(np.abs(np.array(theirs) - ours).max())}


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = PlainParser(description="How long do the intervals of a law take on one core?")
    parser.add_argument("--samples", type=int, default=1000, help="resamples")
    parser.add_argument("--bfgs", type=int, default=0, metavar="N", help="also time BFGS on so many resamples")
    parser.add_argument("--json", type=Path, help="file for the numbers; default: none")
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    studies = [("chinchilla", published()), ("chinchilla", published(16)), ("power", ladder(6)), ("power", ladder(60))]
    rows = [measure(name, data, given.samples) for name, data in studies]
    for row in rows:
        print(
            f"{row['law']:<12}{row['runs']:>4} runs: fit {row['fit_s']:.2f} s, {row['samples']:,} resamples "
            f"{row['resamples_s']:.2f} s, {row['skipped']} without a law"
        )
    found: dict[str, Any] = {"rows": rows}
    if given.bfgs:
        found |= beside_bfgs(given.bfgs)
        print(f"BFGS: {found['bfgs_s']:.3f} s for one resample; points differ by {found['largest_difference']:.1g}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
