"""Runs as rows of a table: from run folders, studies, sweeps and CSV files, with one set of column names.

Whatever fits, compares, draws or reports runs reads them here, so that "flops" means the same everywhere.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.metrics.summary import METRICS_FILE, SUMMARY_FILE, read_metrics
from lit_gpt.train.run_folder import CONFIG
from lit_gpt.utils.files import read_object

COLUMNS = {  # every number of a run, in words and units
    "loss": "validation loss (nats per token)",
    "bpb": "validation loss (bits per byte)",
    "flops": "compute (FLOPs of matrix products, forward and backward, with head and attention)",
    "flops_6nd": "compute (6 x parameters without embeddings x tokens)",
    "tokens": "training tokens",
    "parameters": "active parameters without embeddings",
    "parameters_all": "parameters with embeddings, head and all experts",
    "batch": "batch (tokens)",
    "steps": "optimizer steps",
    "rate": "peak learning rate of matrices",
    "eta0": "base learning rate (eta0)",
    "weight_decay": "weight decay of matrices",
    "depth": "depth (layers)",
    "width": "width",
    "context": "context (tokens)",
    "seed": "seed of the weights",
    "unique_tokens": "different training tokens that were seen",
    "epochs": "passes over the training data",
    "tokens_per_sec": "speed (tokens per second)",
    "seconds": "time of training (seconds)",
}
ALIASES = {  # how tables of others call them
    "model size": "parameters",
    "params": "parameters",
    "n": "parameters",
    "training flop": "flops_6nd",
    "training flops": "flops_6nd",
    "c": "flops",
    "d": "tokens",
    "learning_rate": "rate",
    "lr": "rate",
    "total_bsz": "batch",
    "batch_size": "batch",
    "metric/val_loss@1x": "loss",
    "val_loss": "loss",
    "metric/val_bpb@1x": "bpb",
    "total_tokens": "tokens",
}
FINISHED, CUT, RUNNING = "finished", "cut", "without an end"


@dataclass(frozen=True)
class Run:
    """One training run.

    name: unique among the runs read together. folder: of the run; None for a line of a CSV file. state: FINISHED, CUT
    (it was interrupted), or RUNNING (it runs, or died). settings: options as pretrain.py names them, groups with dots,
    and the row of a study over them. numbers: keys of COLUMNS, as far as they are known, and results of evaluations
    as task/figure.
    """

    name: str
    folder: Path | None
    state: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def value(self, column: str) -> Any:
        """A number, or else a setting, or None."""
        return self.numbers.get(column, self.settings.get(column))


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in these CSV files and folders (run folders, or folders that hold some at any depth).

    Raises UserError for a path without runs.
    """
    found: list[Run] = []
    for path in paths:
        here = _of_csv(path) if path.is_file() else [_of_folder(folder) for folder in run_folders(path)]
        if not here:
            raise UserError(f"There is no run in {path}. Give run folders, a folder that holds some, or a CSV file.")
        found += here
    return _named_apart(found)


def run_folders(path: Path) -> list[Path]:
    """Every run folder at or below a folder, in the order of their names. Raises UserError where there is no folder."""
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Give run folders, a folder that holds some, or a CSV file.")
    if (path / CONFIG).is_file():
        return [path]
    below = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [folder for child in below for folder in run_folders(child)]


def column(runs: Sequence[Run], name: str) -> np.ndarray:
    """One number of every run, (runs,). Raises UserError for runs that do not have it."""
    missing = [run.name for run in runs if not isinstance(run.value(name), int | float)]
    if missing:
        known = sorted({key for run in runs for key in run.numbers})
        raise UserError(
            f"{len(missing)} of {len(runs)} runs have no number {name!r}, such as {missing[0]}."
            f"{did_you_mean(name, known)} Known of these runs: {', '.join(known)}."
        )
    return np.array([float(run.value(name)) for run in runs])


def _of_folder(folder: Path) -> Run:
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}
    settings = dict(_flat(config))
    row = folder.parent / "row.json"
    if row.is_file():
        settings |= {key: value for key, value in read_object(row).items() if key != "name"}
    summary = read_object(folder / SUMMARY_FILE) if (folder / SUMMARY_FILE).is_file() else {}
    plan = read_object(folder / "plan.json") if (folder / "plan.json").is_file() else {}
    model = read_object(folder / "model.json") if (folder / "model.json").is_file() else {}
    state = FINISHED if summary.get("finished") else CUT if summary else RUNNING
    name = folder.parent.name if row.is_file() else folder.name
    numbers = {key: float(value) for key, value in _numbers(folder, settings, summary, plan, model) if _finite(value)}
    return Run(name, folder, state, settings, numbers)


def _numbers(
    folder: Path,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    plan: Mapping[str, Any],
    model: Mapping[str, Any],
) -> Iterable[tuple[str, Any]]:
    """(column, value) of what the run's files say; values may be None."""
    tokens, counts = summary.get("tokens"), plan.get("counts", {})
    size = counts.get("non_embedding")
    active = size - counts["total"] + counts["active"] if size and "active" in counts else size
    yield from (("loss", summary.get("metric/val_loss@1x")), ("bpb", summary.get("metric/val_bpb@1x")))
    yield from (("tokens", tokens), ("parameters", active), ("parameters_all", counts.get("total")))
    if tokens and plan.get("model_flops_per_token"):
        yield "flops", tokens * plan["model_flops_per_token"]
    if tokens and active:
        yield "flops_6nd", 6 * active * tokens
    yield from (
        ("batch", plan.get("batch_tokens")),
        ("steps", summary.get("step")),
        ("rate", summary.get("learning_rate")),
    )
    yield from (
        ("eta0", settings.get("base_hps.eta0")),
        ("weight_decay", plan.get("roles", {}).get("matrix", {}).get("weight_decay")),
    )
    yield from (("depth", plan.get("depth")), ("width", model.get("n_embd")), ("context", plan.get("context")))
    yield from (("seed", plan.get("seed")), ("tokens_per_sec", summary.get("throughput/tokens_per_sec")))
    yield "seconds", summary.get("time/train")
    if summary and (folder / METRICS_FILE).is_file():
        epochs = [
            values[np.isfinite(values)] for key, values in read_metrics(folder).items() if key.startswith("data/epoch/")
        ]
        if tokens and len(epochs) == 1 and len(epochs[0]):
            last = float(epochs[0][-1])
            yield from (("epochs", last), ("unique_tokens", tokens / max(last, 1.0)))


def _of_csv(path: Path) -> list[Run]:
    """One run for each line; names of columns as in COLUMNS or ALIASES, in any case."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file that can be read ({error}).") from error
    runs = []
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise UserError(f"{path}, line {number}: the number of cells is not that of the header.")
        cells = {known_name(key): value.strip() for key, value in line.items() if value.strip()}
        numbers = {key: float(value) for key, value in cells.items() if _is_number(value)}
        if "tokens" not in numbers and {"parameters", "flops_6nd"} <= numbers.keys():
            numbers["tokens"] = numbers["flops_6nd"] / (6 * numbers["parameters"])
        if "flops_6nd" not in numbers and {"parameters", "tokens"} <= numbers.keys():
            numbers["flops_6nd"] = 6 * numbers["parameters"] * numbers["tokens"]
        settings = {key: value for key, value in cells.items() if key not in numbers}
        runs.append(Run(cells.get("name", f"{path.stem}:{number}"), None, FINISHED, settings, numbers))
    return runs


def known_name(name: str) -> str:
    """The name of COLUMNS for a column of a table, or the name itself."""
    low = name.strip().lower()
    return low if low in COLUMNS else ALIASES.get(low, name.strip())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; those that share a name are called after their folders too, or get a number."""
    seen: dict[str, int] = {}
    found = []
    for run in runs:
        seen[run.name] = count = seen.get(run.name, 0) + 1
        found.append(
            run if count == 1 else Run(f"{run.name} ({count})", run.folder, run.state, run.settings, run.numbers)
        )
    return found
