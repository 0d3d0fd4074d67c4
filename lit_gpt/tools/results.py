"""What evaluations found, of one run or of many beside each other.

A figure at a length, such as acc@480, is drawn over length; others over the compute of training, each with its standard
error. Results of other settings, and runs of one name, are points of their own. lit_gpt/evals/results.py has what a
result is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.evals.results import Metric, Result, folder_of, owner_of, read_results
from lit_gpt.lab.figures import legend, looks
from lit_gpt.lab.runs import Run, named_apart
from lit_gpt.metrics.figures import save, subplots
from lit_gpt.tools._cli import LeftOut, local_path, parser_for
from lit_gpt.utils.files import near
from lit_gpt.utils.text import aligned

EXAMPLES = (
    ("out/run_a out/run_b", "what evaluations found of two runs"),
    ("out/* --task phonebook --plot phonebook.png", "one task of all runs, and its figure"),
)
HEADER = ("model", "step", "weights", "task", "examples", "metric", "value", "std. error", "settings that differ")
NUMBERS = (1, 4, 6, 7)
LISTED = 24  # names in the legend, at most
TICKS = 8  # of an axis of lengths, at most: more of them overlap


class Row(NamedTuple):
    """One figure of one result. model: its name, with its folder where several have it."""

    model: str
    result: Result
    name: str
    metric: Metric

    @property
    def kind(self) -> tuple[str, str]:
        """Task and name, of figures at a length without that: `acc@`."""
        name, at, _ = self.name.partition("@")
        return self.result.task, name + at

    @property
    def length(self) -> int | None:
        """Of a figure at a length."""
        at = self.name.partition("@")[2]
        return int(at) if at.isdecimal() else None


def rows_of(
    paths: Sequence[Path], task: str | None, metric: str | None, damaged: Callable[[UserError], None] | None = None
) -> list[Row]:
    """Every figure of the results beside these models, each once. damaged: see read_results.

    Raises UserError where there is none.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist.{near(path)} Give run folders, step folders, or exported files.")
    places = list({folder_of(path).resolve(): path for path in paths}.values())  # a run and its step have the same
    there = [(path, result) for path in places for result in read_results(path, damaged)]
    models = list(dict.fromkeys((result.subject.name, owner_of(path)) for path, result in there))
    named = dict(zip(models, named_apart([Run(name, owner, "") for name, owner in models])))
    found = [
        Row(named[result.subject.name, owner_of(path)].name, result, name, metric)
        for path, result in there
        for name, metric in result.metrics.items()
    ]
    chosen = [
        row
        for row in found
        if task in (None, row.result.task) and metric in (None, row.name, row.kind[1], row.kind[1].rstrip("@"))
    ]
    if not chosen:
        where = ", ".join(str(folder_of(path)) for path in paths[:3])
        known = sorted({f"--task {task} --metric {name.rstrip('@')}" for task, name in (row.kind for row in found)})
        raise UserError(
            f"There are no such results in {where}; there are: {', '.join(known)}."
            if found
            else f"There are no results in {where}. Make some with eval.py or python -m lit_gpt.tools.evaluate."
        )
    return chosen


def table(rows: Sequence[Row]) -> str:
    """One line for each figure."""
    cells: list[tuple[str, ...]] = [HEADER]
    varied = _varied(rows)
    for row in rows:
        subject, metric = row.result.subject, row.metric
        error = "" if metric.stderr is None else f"{metric.stderr:.4g}"
        who = (row.model, f"{subject.step}", subject.weights, row.result.task, f"{row.result.examples:,}")
        cells.append((*who, row.name, f"{metric.value:.6g}", error, _settings(row, varied)))
    return aligned(cells, right=NUMBERS)


def _settings(row: Row, varied: Mapping[str, Sequence[str]]) -> str:
    """Those in which the results of its task differ."""
    return ", ".join(f"{key} {row.result.settings.get(key)}" for key in varied[row.result.task])


def _varied(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Task -> the settings in which its results differ."""
    found: dict[str, list[str]] = {}
    for task in {row.result.task for row in rows}:
        settings = [row.result.settings for row in rows if row.result.task == task]
        keys = dict.fromkeys(key for one in settings for key in one)
        found[task] = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    return found


def drawn(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The figures that have a place: at a length, or of a checkpoint that says its compute; and the models of others.

    Raises UserError where there is none.
    """
    placed = [row for row in rows if row.length or row.result.subject.flops]
    if not placed:
        raise UserError(
            "Nothing can be drawn: no figure is at a length, and no checkpoint says the compute of its training. Leave "
            "out --plot."
        )
    return placed, list(dict.fromkeys(row.model for row in rows if row not in placed))


def plot(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each figure: over length where it has one, else over the FLOPs of training. rows: of `drawn`."""
    kinds, varied = dict.fromkeys(row.kind for row in rows), _varied(rows)
    series = dict.fromkeys(_series(row, varied) for row in rows)
    look = dict(zip(series, looks(len(series))))
    figure, panels = subplots(
        5.0 * min(3, len(kinds)), 3.6 * -(-len(kinds) // 3), -(-len(kinds) // 3), min(3, len(kinds))
    )
    for panel, kind in zip(panels.flat, kinds):
        here = [row for row in rows if row.kind == kind]
        over_length = any(row.length for row in here)
        for name in dict.fromkeys(_series(row, varied) for row in here):
            own = sorted((r for r in here if _series(r, varied) == name), key=_place)
            values, errors = [r.metric.value for r in own], [r.metric.stderr or 0.0 for r in own]
            line = {"color": look[name].color, "marker": look[name].marker, "linestyle": "-" if over_length else ""}
            panel.errorbar(list(map(_place, own)), values, yerr=errors, capsize=3, label=name, **line)
        _scale(panel, sorted({row.length for row in here if row.length}))
        bars = "\n(bars: standard error)" if any(row.metric.stderr for row in here) else ""
        panel.set_ylabel(f"{kind[0]}: {kind[1].rstrip('@')}{bars}")
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    legend(figure, list(panels.flat), listed=LISTED, others="; the table has all")
    return save(figure, path)


def _scale(panel: Any, lengths: Sequence[int]) -> None:
    """The x axis. lengths: empty for one over compute."""
    panel.set_xscale("log", base=2 if lengths else 10)
    panel.set_xlabel("length (entries or tokens)" if lengths else "compute of training (FLOPs)")
    if lengths:  # powers of two say little of lists of 40 to 480 entries
        shown = lengths[:: -(-len(lengths) // TICKS)]
        panel.set_xticks(shown, [f"{length:,}" for length in shown])
        panel.minorticks_off()


def _place(row: Row) -> float:
    return row.length or row.result.subject.flops or math.nan


def _series(row: Row, varied: Mapping[str, Sequence[str]]) -> str:
    """The name of the points that a row belongs to: of one model over length, or over its steps, and of one setting."""
    subject = row.result.subject
    parts = [row.model, "" if subject.weights == "trained" else subject.weights, _settings(row, varied)]
    steps = [f"step {subject.step}"] if row.length else []
    return ", ".join([*filter(None, parts), *steps])


def main(argv: list[str]) -> int:
    """Print the table, and draw it where asked; the exit code is not 0 where a file is left out as damaged."""
    parser = parser_for("results", "What did evaluations of these models find?", EXAMPLES)
    parser.add_argument("models", nargs="+", type=local_path, help="run folders, step folders, or exported files")
    parser.add_argument("--task", type=str | None, default=None, help="results of this task only")
    parser.add_argument("--metric", type=str | None, default=None, help="this figure only, such as acc or acc@480")
    parser.add_argument("--plot", type=local_path, default=None, help="draw them too, into this .png file")
    values = parser.parse_args(argv)
    left_out = LeftOut()
    rows = rows_of(values.models, values.task, values.metric, left_out)
    print(table(rows))
    if values.plot:
        placed, others = drawn(rows)
        if others:
            print(f"note: not drawn, as their checkpoints do not say their compute: {', '.join(others)}")
        print(f"drawn: {plot(placed, values.plot)}")
    return left_out.code


if __name__ == "__main__":
    run_command(main)
