"""Curves of metrics over training, from run folders and from charts that Weights & Biases exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.run_files import unfinished
from lit_gpt.lab.runs import Run, known_name, name_of, named_apart, run_folders
from lit_gpt.lab.tables import Curve, curves
from lit_gpt.metrics.spikes import SpikeDetector
from lit_gpt.metrics.summary import METRICS_FILE, read_metrics

TOKENS, STEPS = "tokens", "steps"
TOTAL = "total_tokens"
SPIKY = ("metric/train_loss", "metric/grad_norm")  # whose spikes are counted

Curves = dict[str, dict[str, Curve]]  # metric -> run -> curve over tokens or steps


def read_curves(paths: Sequence[Path], tokens_per_step: float | None = None) -> Curves:
    """Every metric of these run folders, folders that hold some, and charts, each of which counts once.

    tokens_per_step: of charts over steps, to draw them over tokens. Raises UserError for a path without curves, and for
    charts that have one curve of a run twice.
    """
    once = list({path.resolve(): path for path in paths}.values())
    charts = [path for path in once if path.is_file()]
    found: Curves = {}
    for run, metrics in _of_folders([path for path in once if path not in charts]).items():
        for metric, curve in metrics.items():
            found.setdefault(metric, {})[run] = curve
    for path in charts:
        for run, metrics in _of_chart(path, tokens_per_step).items():
            for metric, curve in metrics.items():
                if found.setdefault(metric, {}).setdefault(run, curve) is not curve:
                    raise UserError(f"{path} has {metric} of {run} once more. Leave it out, or rename the run there.")
    return found


def _of_folders(paths: Sequence[Path]) -> dict[str, dict[str, Curve]]:
    folders: dict[Path, Path] = {}
    for path in paths:
        here = [folder for folder in run_folders(path) if (folder / METRICS_FILE).is_file()]
        if not here:
            raise UserError(f"There is no run with curves in {path}. Give run folders, or folders that hold some.")
        folders |= {folder.resolve(): folder for folder in here}
    named = named_apart([Run(name_of(folder), folder, unfinished(folder)) for folder in folders.values()])
    return {run.name: _of_folder(folder, run.state) for run, folder in zip(named, folders.values())}


def _of_folder(folder: Path, state: str) -> dict[str, Curve]:
    found = read_metrics(folder)
    over, x = (TOKENS, found[TOTAL]) if TOTAL in found else (STEPS, found["step"])
    return {metric: curve for metric, y in found.items() if (curve := _finite(over, x, y, state)) is not None}


def _of_chart(path: Path, tokens_per_step: float | None) -> dict[str, dict[str, Curve]]:
    found: dict[str, dict[str, Curve]] = {}
    for run, metrics in curves(path).items():
        for metric, curve in metrics.items():
            over, x = known_name(curve.over), curve.x
            if over == STEPS and tokens_per_step is not None:
                over, x = TOKENS, x * tokens_per_step
            if (kept := _finite(over, x, curve.y)) is not None:
                found.setdefault(run, {})[metric] = kept
    return found


def _finite(over: str, x: np.ndarray, y: np.ndarray, state: str = "") -> Curve | None:
    there = np.isfinite(x) & np.isfinite(y)
    return Curve(over, x[there], y[there], state) if there.any() else None


def chosen(found: Curves, wanted: Sequence[str], usual: Sequence[str]) -> Curves:
    """The metrics that are wanted; without a wish the usual ones that there are.

    Raises UserError for a metric that no run has, and where there is none of the usual ones.
    """
    for metric in wanted:
        if metric not in found:
            raise UserError(
                f"No run has the metric {metric!r}.{did_you_mean(metric, found)} There are: {', '.join(sorted(found))}."
            )
    if not wanted and not set(usual) & set(found):
        raise UserError(f"No run has a usual metric of health. Choose with --metric from: {', '.join(sorted(found))}.")
    return {metric: found[metric] for metric in wanted or usual if metric in found}


def told(metric: str, curve: Curve) -> dict[str, Any]:
    """The last value, the largest and where it was, and how often a loss or gradient was a spike.

    Of a run that has not finished its state, too.
    """
    most = int(curve.y.argmax())
    found: dict[str, Any] = {"last": curve.y[-1], "largest": curve.y[most], f"largest_at_{curve.over}": curve.x[most]}
    if curve.state:
        found["state"] = curve.state
    if metric in SPIKY:
        detector = SpikeDetector()
        found["spikes"] = sum(detector.update(float(value)) for value in curve.y if math.isfinite(value))
    return found


def numbers_of(found: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
    """The same of all metrics and runs."""
    return {metric: {run: told(metric, curve) for run, curve in runs.items()} for metric, runs in found.items()}
