"""Figures of runs, drawn from their metrics.jsonl."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.metrics.figures import COLORS, count_tokens, save, short, spaced, subplots
from lit_gpt.metrics.labels import STEPS, TOKENS, axis_label
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.utils.files import read_object

CURVE_FILE = "loss_curve.png"
TRAIN, VALIDATION, LEARNING_RATE = "metric/train_loss", "metric/val_loss@1x", "metric/weight_learning_rate"
BITS = "metric/val_bpb@1x"
AVERAGE = re.compile(r"metric/val_loss_(ema_[^@]+)@1x")  # of an average of the weights, see train/validate.py
_BLUE, _GREY = "#1f5fa8", "#5a6570"
_OF_VALIDATION = ("#e07b00", "#2a8f5b", "#8e44ad", "#b03a2e")  # the weights first, then their averages
_SMOOTH_OVER = 0.02  # length of the moving average, as a fraction of the points
WITHIN, NARROW = 6, 45  # names, and letters of each with its value, of a legend inside a panel; others stand below
LISTED, LONGEST = 12, 60  # names of a legend below, and letters of each
FAR_APART = 50.0  # largest over smallest loss, from which an axis is logarithmic

Curves = dict[str, np.ndarray]


def draw_loss_curve(
    folder: Path, bytes_per_token: float | None = None, output: Path | None = None, state: str = ""
) -> Path:
    """Draw training and validation loss and the learning rate over tokens; returns the PNG's path.

    folder: run folder. bytes_per_token: of the validation text; adds an axis in bits per byte,
    loss / (ln 2 * bytes_per_token); default: what the run logged, if it did.
    output: default loss_curve.png in the folder. state: of a run that has not finished, behind its name.
    Raises UserError when the run logged no training loss.
    """
    curves = read_metrics(folder)
    train_x, train_y = series(curves, TRAIN, folder)
    has_lr = LEARNING_RATE in curves
    rows, height, ratios = (2, 5.4, [3.4, 1]) if has_lr else (1, 4.6, [1])
    figure, panels = subplots(8, height, rows, sharex=True, height_ratios=ratios)
    top, bottom = panels[0, 0], panels[-1, 0]
    smoothed = smooth(train_y)
    top.plot(train_x, train_y, color=_BLUE, alpha=0.25, linewidth=0.8, label="train")
    name = f"train, smoothed: {smoothed[-1]:.4f}"
    top.plot(train_x, smoothed, color=_BLUE, linewidth=1.6, marker=_marker(smoothed), markersize=3, label=name)
    shown = [smoothed]
    averages = {key: f"validation, {found[1]}" for key in curves if (found := AVERAGE.fullmatch(key))}
    validations = ({VALIDATION: "validation"} if VALIDATION in curves else {}) | averages
    for (key, name), color in zip(validations.items(), cycle(_OF_VALIDATION)):
        x, y = series(curves, key, folder)
        top.plot(x, y, "o-", color=color, markersize=4, linewidth=1, label=f"{name}: {y[-1]:.4f}")
        shown.append(y)
    _limits(top, shown)
    _dress(top, folder.resolve().name + _in_brackets(state) + _origin(folder), "loss (nats per token)")
    if bytes_per_token is None and VALIDATION in curves and BITS in curves:
        (_, losses), (_, bits) = (series(curves, key, folder) for key in (VALIDATION, BITS))
        bytes_per_token = float(losses[-1] / bits[-1] / math.log(2))
    if bytes_per_token:
        _bits_per_byte(top, bytes_per_token)
    if has_lr:
        bottom.plot(*series(curves, LEARNING_RATE, folder), color=_GREY, linewidth=1.3)
        bottom.set_ylabel("learning rate\nof matrices")
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        bottom.grid(alpha=0.25)
    bottom.set_xlabel(_x_label(curves))
    return _save(figure, output or folder / CURVE_FILE)


def draw_overlay(
    folders: Sequence[Path], metrics: Sequence[str], output: Path, states: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Draw metrics of several runs over tokens, a panel each, into `output`; smoothed where there are many points.

    A run without a metric is left out of its panel. states: of each run, "" of a finished one, behind the
    name of its curve. Returns metric -> run -> the last value shown.
    Raises UserError when no run has a metric.
    """
    import matplotlib

    width = 8 if len(metrics) == 1 else 5.5 * len(metrics)
    figure, (panels,) = subplots(width, 4.6, 1, len(metrics))
    count = len(folders)
    colors = COLORS if count <= len(COLORS) else matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, count))
    runs = {name: read_metrics(folder) for name, folder in zip(_names(folders), folders)}
    last: dict[str, dict[str, float]] = {}
    for axes, metric in zip(panels, metrics):
        shown = []
        for (name, curves), folder, color, state in zip(runs.items(), folders, colors, states or [""] * count):
            if metric not in curves and any(metric in other for other in runs.values()):
                continue
            x, y = series(curves, metric, folder)
            line = smooth(y)
            axes.plot(x, y, color=color, alpha=0.2, linewidth=0.8)
            label = f"{name}{_in_brackets(state)}: {line[-1]:.4g}"
            axes.plot(x, line, color=color, linewidth=1.5, marker=_marker(y), markersize=3.5, label=label)
            shown.append(line)
            last.setdefault(metric, {})[name] = float(line[-1])
        if "loss" in metric:
            _limits(axes, shown)
        _dress(axes, metric, axis_label(metric))
        axes.set_xlabel(_x_label(next(iter(runs.values()))))
    _name_below(figure, panels)
    _save(figure, output)
    return last


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; those of their parents, rows of a sweep, where runs are called the same; else whole paths."""
    named = [[f.resolve().name for f in folders], [f.resolve().parent.name for f in folders], list(map(str, folders))]
    names = next((names for names in named if len(set(names)) == len(names)), named[-1])
    return [name + _origin(folder) for name, folder in zip(names, folders)]


def _in_brackets(state: str) -> str:
    return f" ({state})" if state else ""


def _origin(folder: Path) -> str:
    """Where a fork comes from, in words that follow its name; "" for other runs."""
    try:
        fork = read_object(folder / "plan.json").get("fork")
        return f"\nfork of {Path(fork['path']).parent.parent.name} after {fork['tokens']:,} tokens" if fork else ""
    except (UserError, TypeError, KeyError, ValueError):  # metrics without a run folder, or of another program
        return ""


def series(curves: Curves, metric: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (optimizer steps where tokens were not logged) and the finite values of a metric, (points,) both.

    Raises UserError for a metric without any.
    """
    if metric not in curves:
        raise UserError(
            f"Run {folder} has no metric {metric!r}.{did_you_mean(metric, curves)} It has: {', '.join(sorted(curves))}."
        )
    x = curves.get("total_tokens", curves["step"])
    finite = np.isfinite(curves[metric]) & np.isfinite(x)
    if not finite.any():
        raise UserError(f"Run {folder} has no finite value of {metric!r} yet; it diverged or just began.")
    return x[finite], curves[metric][finite]


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over 2 percent of the points; same shape.

    The window is centred, so that a steep start does not lag; at the end, where
    nothing is to the right, it reaches back only and shows the level reached.
    """
    index = np.arange(len(values))
    half = np.minimum(index, round(_SMOOTH_OVER * len(values) / 2))
    first, last = index - half, np.minimum(index + half, len(values) - 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def _dress(axes: Any, title: str, y_label: str) -> None:
    axes.set_title(
        title, fontsize=min(11, 960 / max(map(len, title.splitlines())))
    )  # a long run name still fits 8 inches
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    axes.margins(x=0.01)


def _name_below(figure: Any, panels: Sequence[Any]) -> None:
    """Put many names, or long ones, below their panel, where they cover no curve; of very many, some."""
    rows = 0
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) <= WITHIN and max(map(len, labels), default=0) <= NARROW:
            continue
        chosen = spaced(range(len(labels)), LISTED)
        title = f"{LISTED} of {len(labels)}; --json FILE has all" if len(labels) > LISTED else None
        add = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "frameon": False, "fontsize": 8, "title": title}
        axes.legend([handles[i] for i in chosen], [short(labels[i], LONGEST) for i in chosen], title_fontsize=8, **add)
        rows = max(rows, len(chosen) + (title is not None))
    figure.set_figheight(figure.get_figheight() + 0.18 * rows)  # panels keep their height


def _limits(axes: Any, losses: Sequence[np.ndarray]) -> None:
    """Scale the y axis to what comes after the first 5 percent of the points, whose steep fall leaves at the top."""
    scale_y(axes, min(float(y.min()) for y in losses), max(float(y[len(y) // 20 :].max()) for y in losses), 0.06)


def scale_y(axes: Any, low: float, high: float, margin: float) -> None:
    """From low to high, with a margin on either side as a share of that.

    One value that is far above the others would press them into a line: then the axis is logarithmic.
    """
    if 0 < low < high / FAR_APART:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        return
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _marker(values: np.ndarray) -> str:
    """Dots where there are few enough points to tell them apart."""
    return "o" if len(values) <= 60 else ""


def _bits_per_byte(axes: Any, bytes_per_token: float) -> None:
    """A second y axis: a loss in nats per token is loss / (ln 2 * bytes per token) bits per byte."""
    scale = math.log(2) * bytes_per_token
    axis = axes.secondary_yaxis("right", functions=(lambda y: y / scale, lambda y: y * scale))
    axis.set_ylabel("loss (bits per byte)")


def _x_label(curves: Curves) -> str:
    return TOKENS if "total_tokens" in curves else STEPS


def _save(figure: Any, path: Path) -> Path:
    for axes in figure.axes:
        count_tokens(axes.xaxis)
    return save(figure, path)
