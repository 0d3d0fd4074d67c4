"""What the files of one run folder say so far, also while it trains, and after a death."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.data.permutation import Permutation
from lit_gpt.errors import UserError
from lit_gpt.evals.results import Metric, read_results
from lit_gpt.lab.watch import diverged
from lit_gpt.metrics.summary import METRICS_FILE, SUMMARY_FILE, read_rows
from lit_gpt.train.folder_names import CONFIG, ENVIRONMENT
from lit_gpt.train.lease import owner_of
from lit_gpt.utils.files import read_object_if_any

FINISHED, CUT, DIVERGED, RUNNING, DIED = "finished", "cut", "diverged", "running", "died"
STATES = {
    FINISHED: "its budget is spent",
    CUT: "it was interrupted, and can go on",
    DIVERGED: "its loss or gradients were not finite, or its loss stayed above its start, and it ended",
    RUNNING: "a process trains it",
    DIED: "no process trains it, and it did not say how it ended",
}
EPOCH = "data/epoch/"
TAIL = 1 << 16  # bytes: more than the last line of a metrics.jsonl


class RunFiles:
    """The files of a run folder, read once; empty where one is not there.

    state: one of STATES. last: the newest finite value of each metric; of a run that has ended, of its last lines only,
    since `summary` has the others.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.summary, self.plan, self.model, self.environment = (
            read_object_if_any(folder / name) for name in (SUMMARY_FILE, "plan.json", "model.json", ENVIRONMENT)
        )
        self.state = _state(folder, self.summary)
        ended = self.state in (FINISHED, CUT, DIVERGED)
        self.last = _last_values(folder / METRICS_FILE, tail=ended)
        if not ended:  # the summary, if any, is of an earlier start
            self.summary = {
                **self.last,
                "tokens": self.last.get("total_tokens"),
                "train_loss": self.last.get("metric/train_loss"),
            }

    def config(self) -> dict[str, Any]:
        """The options. Raises UserError for a file that is no YAML, or holds no options."""
        path = self.folder / CONFIG
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read ({error}). Remove it, or write it again.") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no options, but {str(found)[:40]!r}. Remove it, or write it again.")
        return found

    def repetition(self) -> tuple[float, int] | None:
        """(passes over the source that was passed most often, different training tokens that were seen).

        None where the files do not say it. A source is served in windows of `context` tokens, as data/corpus.py has it.
        """
        sources = self.environment.get("data", {}).get("train", {}).get("sources", {})
        passes = {name: self.last[EPOCH + name] for name in sources if EPOCH + name in self.last}
        context, seed = self.plan.get("context"), self.plan.get("data_seed", self.plan.get("seed"))
        if not passes or not context or seed is None or len(passes) < len(sources):
            return None
        seen = [_seen(name, source["tokens"], passes[name], context, seed) for name, source in sources.items()]
        return max(passes.values()), sum(seen)

    def evaluations(self) -> Iterator[tuple[str, float]]:
        """(task/figure, value) and (task/figure_stderr, value), of the newest step that has the task.

        Those made while training count where no result of a task lies in the folder. Figures of an average of the
        weights end in its name, such as hellaswag/acc_ema_1B.
        """
        for key, value in {**self.last, **self.summary}.items():
            if key.startswith("eval/"):
                yield key.removeprefix("eval/"), value
        for key, metric, _ in judgements(self.folder):
            yield key, metric.value
            if metric.stderr is not None:
                yield f"{key}_stderr", metric.stderr


def judgements(folder: Path) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
    """(task/figure, value, settings) of the results that lie in a run folder, the newest step and time last."""
    for result in sorted(read_results(folder), key=lambda found: (found.subject.step, found.time)):
        suffix = "" if result.subject.weights == "trained" else f"_{result.subject.weights}"
        for name, metric in result.metrics.items():
            yield f"{result.task}/{name}{suffix}", metric, result.settings


def unfinished(folder: Path) -> str:
    """The state of a run that has not finished, for the name of its curve; "" of others, and of folders of no run."""
    if not (folder / CONFIG).is_file():
        return ""
    state = _state(folder, read_object_if_any(folder / SUMMARY_FILE))
    return "" if state == FINISHED else state


def _seen(name: str, tokens: int, passes: float, context: int, seed: int) -> int:
    """Different targets of a source after so many passes: in whole windows, of which the stream's last one is short."""
    windows = -(-(tokens - 1) // context)
    served = min(round(passes * windows), windows)
    with_last = served == windows or Permutation(windows, f"{seed}/{name}/0").inverse(windows - 1) < served
    return served * context - with_last * (windows * context - (tokens - 1))


def _state(folder: Path, summary: Mapping[str, Any]) -> str:
    if owner_of(folder):
        return RUNNING
    if summary.get("finished"):
        return FINISHED
    if summary.get("diverged") or diverged(folder.parent):  # by itself, or stopped by a ladder
        return DIVERGED
    return CUT if summary else DIED


def _last_values(path: Path, tail: bool) -> dict[str, float]:
    """The newest finite value of each key of a metrics.jsonl; tail: of its last lines only."""
    if not path.is_file():
        return {}
    found: dict[str, float] = {}
    for row in _tail(path) if tail else read_rows(path):
        found |= {key: value for key, value in row.items() if value is not None and math.isfinite(value)}
    return found


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        lines = file.read().split(b"\n")
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the first one is cut
        if isinstance(row, dict):
            yield {key: value for key, value in row.items() if isinstance(value, int | float)}
