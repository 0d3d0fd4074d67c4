"""Runs as rows of a table: from run folders, studies, sweeps and CSV files, with one set of column names.

Whatever fits, compares, draws or reports runs reads them here, so that "flops" means the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.rows import NOTE
from lit_gpt.lab.run_files import CUT, DIED, DIVERGED, FINISHED, RUNNING, RunFiles
from lit_gpt.lab.tables import Curve, curves, is_chart, number_of, read_lines
from lit_gpt.train.folder_names import CONFIG, ENVIRONMENT
from lit_gpt.utils.files import near, read_object_if_any

COLUMNS = {  # every number of a run, in words and units
    "loss": "validation loss (nats per token)",
    "bpb": "validation loss (bits per byte)",
    "flops": "compute (FLOPs of matrix products, forward and backward, with head and attention)",
    "flops_6nd": "compute (6 x parameters without embeddings x tokens)",
    "tokens": "training tokens",
    "parameters": "active parameters without embeddings",
    "parameters_total": "parameters without embeddings, with all experts",
    "parameters_all": "parameters with embeddings, head and all experts",
    "sparsity": "all experts over those that a token uses (1: dense)",
    "granularity": "experts that a token uses, which together are as wide as one network (1: dense)",
    "batch": "batch (tokens)",
    "steps": "optimizer steps",
    "rate": "peak learning rate of matrices",
    "eta0": "base learning rate (eta0)",
    "weight_decay": "weight decay of matrices",
    "depth": "depth (layers)",
    "width": "width",
    "context": "context (tokens)",
    "seed": "seed of the weights",
    "data_seed": "seed of the order of the data",
    "unique_tokens": "different training tokens that were seen",
    "epochs": "passes over the training data (of a mixture, over the part that was passed most often)",
    "train_loss": "training loss (nats per token)",
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
    "base_hps.eta0": "eta0",
    "total_bsz": "batch",
    "batch_size": "batch",
    "metric/val_loss@1x": "loss",
    "val_loss": "loss",
    "metric/val_bpb@1x": "bpb",
    "metric/train_loss": "train_loss",
    "total_tokens": "tokens",
    "train_tokens": "tokens",
    "step": "steps",
    "_step": "steps",
    "step_count": "steps",
    "n_embd": "width",
    "ctx_len": "context",
    "run": "name",
}
# States of runs in exports of Weights & Biases.
_STATES_OF_WANDB = {"crashed": DIED, "failed": DIED, "killed": CUT, "preempted": CUT, "preempting": RUNNING}


@dataclass(frozen=True)
class Run:
    """One training run.

    name: unique among the runs read together. folder: of the run; None for a run of a CSV file. state: one of
    lab/run_files.py's STATES. settings: options as pretrain.py names them, groups with dots, and what else the row of a
    study says. numbers: keys of COLUMNS, as far as they are known, and results of evaluations as task/figure; of a run
    that has not ended, those so far.
    """

    name: str
    folder: Path | None
    state: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def value(self, column: str) -> Any:
        """A number, or else a setting, or None."""
        return self.numbers.get(column, self.settings.get(column))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What its folder says of where it ran, and on which data, read once; empty where there is none."""
        return read_object_if_any(self.folder / ENVIRONMENT) if self.folder else {}


def read_runs(paths: Iterable[Path], damaged: Callable[[UserError], None] | None = None) -> list[Run]:
    """The runs in these CSV files and folders (run folders, or folders that hold some at any depth), each once.

    damaged: told of each run whose files are damaged, which is left out; without it, the first is raised. Raises
    UserError for a path without runs.
    """
    found: list[Run] = []
    for path in {path.resolve(): path for path in paths}.values():
        here = _of_csv(path) if path.is_file() else run_folders(path)
        if not here:
            raise UserError(f"There is no run in {path}. Give run folders, a folder that holds some, or a CSV file.")
        for run in here:
            try:
                found.append(_of_folder(run) if isinstance(run, Path) else run)
            except UserError as error:
                if damaged is None:
                    raise
                damaged(error)
    once: dict[Path | int, Run] = {}
    for run in found:
        once.setdefault(run.folder.resolve() if run.folder else id(run), run)
    return named_apart(list(once.values()))


def run_folders(path: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """Every run folder at or below a folder, in the order of their names. Raises UserError where there is no folder.

    above: the folders that this one was found in, to which a link may lead back.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist.{near(path)} Give run folders, a folder that holds some, or a CSV file."
        )
    if (path / CONFIG).is_file():
        return [path]
    if (here := path.resolve()) in above:
        return []
    below = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [folder for child in below for folder in run_folders(child, above | {here})]


def check_apart(paths: Sequence[Path]) -> None:
    """Raise UserError where two of these CSV files and folders, which are to be compared, hold the same run."""
    first: dict[Path, int] = {}
    for i, path in enumerate(paths):
        for found in [path] if path.is_file() else run_folders(path):
            if (other := first.setdefault(found.resolve(), i)) != i:
                both = f"{path} is given twice" if paths[other] == path else f"{paths[other]} and {path} hold {found}"
                raise UserError(f"{both}, which would be compared with itself. Give paths that share no run.")


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
    of_row = read_object_if_any(folder.parent / NOTE)
    settings = {key: value for key, value in of_row.items() if key != "name"}
    try:
        files = RunFiles(folder)
        settings |= {key: value for key, value in flat(files.config()) if value is not None or key not in settings}
        numbers = {key: float(value) for key, value in _numbers(files, settings) if _finite(value)}
    except (AttributeError, KeyError, TypeError, OverflowError) as error:  # somebody else wrote to them
        raise UserError(
            f"The files of {folder} are not as pretrain.py writes them ({error}). Move the folder elsewhere."
        ) from error
    return Run(name_of(folder), folder, files.state, settings, numbers)


def name_of(folder: Path) -> str:
    """What a run folder is called: after its row in a study, else as it is."""
    return folder.parent.name if (folder.parent / NOTE).is_file() else folder.name


def _numbers(files: RunFiles, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(column, value) of what the run's files say; values may be None."""
    summary, plan = files.summary, files.plan
    tokens, counts = summary.get("tokens"), plan.get("counts", {})
    matrix = plan.get("roles", {}).get("matrix", {})
    size = counts.get("non_embedding")
    active = size - counts["total"] + counts["active"] if size and "active" in counts else size
    yield from files.evaluations()
    yield from (("loss", summary.get("metric/val_loss@1x")), ("bpb", summary.get("metric/val_bpb@1x")))
    yield from (("train_loss", summary.get("train_loss")), ("tokens", tokens))
    yield from (("parameters", active), ("parameters_total", size), ("parameters_all", counts.get("total")))
    if files.model:
        experts = files.model.get("experts") or {"sparsity": 1, "top_k": 1}
        yield from (("sparsity", experts["sparsity"]), ("granularity", experts["top_k"]))
    if tokens and plan.get("model_flops_per_token"):
        yield "flops", tokens * plan["model_flops_per_token"]
    if tokens and active:
        yield "flops_6nd", 6 * active * tokens
    yield from (("batch", plan.get("batch_tokens")), ("steps", summary.get("step")), ("rate", matrix.get("lr")))
    yield from (("eta0", settings.get("base_hps.eta0")), ("weight_decay", matrix.get("weight_decay")))
    yield from (("depth", plan.get("depth")), ("width", files.model.get("n_embd")), ("context", plan.get("context")))
    yield from (("seed", plan.get("seed")), ("data_seed", plan.get("data_seed", plan.get("seed"))))
    yield from (("tokens_per_sec", summary.get("throughput/tokens_per_sec")), ("seconds", summary.get("time/train")))
    if repetition := files.repetition():
        yield from zip(("epochs", "unique_tokens"), repetition)


def _of_csv(path: Path) -> list[Run]:
    """The runs of a table: its lines, or the columns of an exported chart."""
    lines = read_lines(path)
    if is_chart(lines):
        return [_of_curves(name, metrics) for name, metrics in curves(path).items()]
    return [_of_line(f"{path.stem}:{number}", cells) for number, cells in lines]


def _of_line(name: str, line: Mapping[str, str]) -> Run:
    """Raises UserError for two other names of one column with two values: nothing says which is meant."""
    cells: dict[str, str] = {}
    own = {key.lower() for key in line} & {*COLUMNS, "name", "state"}
    called: dict[str, str] = {}
    for key, value in sorted(line.items(), key=lambda cell: cell[0].lower() not in COLUMNS):
        known = known_name(key)
        if known not in own and cells.get(known, value) != value:
            raise UserError(
                f"{name}: {called[known]!r} is {cells[known]} and {key!r} is {value}, and both mean {known}. Remove "
                "one."
            )
        called.setdefault(known, key)
        cells.setdefault(known, value)  # the column itself before other names of it
    numbers = {key: value for key, text in cells.items() if (value := number_of(text)) is not None}
    if "tokens" not in numbers and {"parameters", "flops_6nd"} <= numbers.keys():
        numbers["tokens"] = numbers["flops_6nd"] / (6 * numbers["parameters"])
    if "flops_6nd" not in numbers and {"parameters", "tokens"} <= numbers.keys():
        numbers["flops_6nd"] = 6 * numbers["parameters"] * numbers["tokens"]
    settings = {key: value for key, value in cells.items() if key not in numbers and key not in ("name", "state")}
    state = cells.get("state", FINISHED).lower()
    return Run(cells.get("name", name), None, _STATES_OF_WANDB.get(state, state), settings, numbers)


def _of_curves(name: str, metrics: Mapping[str, Curve]) -> Run:
    """The last values of a run's curves, and how far they go; one that ends in no number has diverged."""
    numbers: dict[str, float] = {}
    ends = all(math.isfinite(curve.y[-1]) for curve in metrics.values())
    for metric, curve in metrics.items():
        finite = np.isfinite(curve.y)
        if finite.any():
            numbers[known_name(metric)] = float(curve.y[finite][-1])
            numbers.setdefault(known_name(curve.over), float(curve.x[finite][-1]))
    return Run(
        name,
        None,
        FINISHED if ends else DIVERGED,
        {},
        {key: value for key, value in numbers.items() if math.isfinite(value)},
    )


def known_name(name: str) -> str:
    """The name of COLUMNS for a column of a table, or the name itself."""
    low = name.strip().lower()
    return low if low in COLUMNS or low in ("name", "state") else ALIASES.get(low, name.strip())


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(name, value) of every leaf of nested objects, names joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; those that share a name are called after the folders that they are in too, or get a number."""
    names = [run.name for run in runs]
    for name in {name for name in names if names.count(name) > 1}:
        for i, longer in zip([i for i, one in enumerate(names) if one == name], _apart(name, runs)):
            names[i] = longer
    return [replace(run, name=name) for run, name in zip(runs, names)]


def _apart(name: str, runs: Sequence[Run]) -> list[str]:
    """Names of their own for the runs of this name."""
    same = [run.folder for run in runs if run.name == name]
    places = [(f.resolve() if f.name == name else f.resolve().parent).parts for f in same if f]
    for length in range(2, max(map(len, places), default=0) + 1) if len(places) == len(same) else ():
        found = ["/".join(parts[-length:]) for parts in places]
        if len(set(found)) == len(found):
            return found
    return [name if number == 1 else f"{name} ({number})" for number in range(1, len(same) + 1)]
