"""What an evaluation found, in a file beside the run: enough to compare it, and to do it again.

<run>/evals/hellaswag-step-000100-1f3a9c.json          the last part is of the settings
model.safetensors.evals/hellaswag-step-000100-1f3a9c.json
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object, told, understood, write_text

FOLDER, VERSION = "evals", 1
PACKAGES = ("torch", "lm_eval", "scalelab")


@dataclass(frozen=True)
class Metric:
    """A figure, and its standard error where the spread of the examples gives one."""

    value: float
    stderr: float | None = None
    better: str = "higher"

    @classmethod
    def mean(cls, values: Sequence[float], better: str = "higher") -> Metric:
        """The mean of examples, and its standard error where there are several."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error, better)

    @classmethod
    def ratio(cls, over: Sequence[float], under: Sequence[float], better: str = "higher") -> Metric:
        """The sum of `over` by the sum of `under`, a pair for each example, with the error of a ratio estimator."""
        value, count = sum(over) / sum(under), len(over)
        spread = math.sqrt(sum((a - value * b) ** 2 for a, b in zip(over, under)) / max(1, count - 1))
        return cls(value, spread / math.sqrt(count) / statistics.fmean(under) if count > 1 else None, better)

    @classmethod
    def share(cls, right: int, count: int) -> Metric:
        """right / count, with the standard error after two more of either kind, so that none of 8 is not certainty.

        Source: Agresti and Coull, The American Statistician 52 (1998), 119-126.
        """
        share = (right + 2) / (count + 4)
        return cls(right / count, math.sqrt(share * (1 - share) / (count + 4)))


@dataclass(frozen=True)
class Subject:
    """Which weights were judged.

    checkpoint: the step folder or exported file. checksum: SHA-256 of the file, or of the step's SHA256SUMS.
    weights: "trained" or the name of an average. parameters: of the Plan, without embeddings. flops: of training,
    forward and backward. These are None where the checkpoint has no Plan.
    """

    name: str
    checkpoint: str
    checksum: str
    weights: str
    step: int
    tokens: int
    parameters: int | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Result:
    """One task on one model. settings: all that the figures depend on besides the model."""

    task: str
    examples: int
    metrics: dict[str, Metric]
    subject: Subject
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    time: str = ""


def save(result: Result, path: Path, folder: Path | None = None) -> Path:
    """Write a result beside the model that was at `path`, or into a folder, over one of the same task and settings.

    A figure that is not finite is left out, with a warning. Raises NotWritten where the file cannot be written.
    """
    for name in [name for name, metric in result.metrics.items() if not math.isfinite(metric.value)]:
        warnings.warn(f"{result.task}: {name} is {result.metrics.pop(name).value}, and is not kept.", stacklevel=2)
    same = json.dumps([result.subject.weights, result.settings], sort_keys=True, default=str)
    short = hashlib.sha256(same.encode()).hexdigest()[:6]
    target = (
        folder or folder_of(path)
    ) / f"{result.task.replace('/', '_')}-step-{result.subject.step:06d}-{short}.json"
    written = {
        "version": VERSION,
        **asdict(result),
        "versions": _versions(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
    with told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(written, indent=1, default=str) + "\n")
    return target


def read_results(path: Path, damaged: Callable[[UserError], None] | None = None) -> list[Result]:
    """All results beside a run, a step or an exported file, by task and step.

    damaged: told of each file that is none, which is left out; without it, such a file is raised as a UserError.
    """
    found: list[Result] = []
    for file in sorted(folder_of(path).glob("*.json")):
        try:
            found.append(_read(file))
        except UserError as error:
            if damaged is None:
                raise
            damaged(error)
    return sorted(found, key=lambda r: (r.task, r.subject.step))


def folder_of(path: Path) -> Path:
    """Where the results of a model go: into its run folder, or beside an exported file."""
    return path.with_name(path.name + ".evals") if path.is_file() else owner_of(path) / FOLDER


def owner_of(path: Path) -> Path:
    """The run folder of a step or checkpoints folder; else the path itself."""
    path = path.absolute()
    for folder in (path, *path.parents[:2]):
        if (folder / "plan.json").is_file():
            return folder
    return path


def _read(path: Path) -> Result:
    found = read_object(path)
    if found.pop("version", None) != VERSION:
        raise UserError(f"{path} is no result of this version's evaluations. Remove it, or evaluate again.")
    with understood(path):
        metrics = {name: Metric(**metric) for name, metric in found.pop("metrics").items()}
        result = Result(metrics=metrics, subject=Subject(**found.pop("subject")), **found)
        _check(result)
    return result


def _check(result: Result) -> None:
    """Raises TypeError where a field of a file is not of its type, and ValueError for a figure that is not finite."""
    whole = [result.examples, result.subject.step, result.subject.tokens]
    texts = [result.task, result.subject.name, result.subject.weights, *(m.better for m in result.metrics.values())]
    metrics = [n for m in result.metrics.values() for n in (m.value, 0.0 if m.stderr is None else m.stderr)]
    numbers = [*metrics, result.subject.flops or 0.0]
    for values, kinds in ((whole, int), (texts, str), (numbers, int | float), ([result.settings], dict)):
        if wrong := [v for v in values if not isinstance(v, kinds) or isinstance(v, bool)]:
            raise TypeError(f"{wrong[0]!r} cannot be there")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a figure is not finite")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
