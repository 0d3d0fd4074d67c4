"""What evaluations found, of one run or of many beside each other.

A figure at a length, such as acc@480, is drawn over length; others over the compute of training, each with its standard
error. lit_gpt/evals/results.py has what a result is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.evals.results import Metric, Result, folder_of, read_results
from lit_gpt.metrics.figures import save, subplots
from lit_gpt.tools._cli import local_path, parser_for
from lit_gpt.utils.files import near
from lit_gpt.utils.text import aligned

EXAMPLES = (
    ("out/run_a out/run_b", "what evaluations found of two runs"),
    ("out/* --task phonebook --plot phonebook.png", "one task of all runs, and its figure"),
)
HEADER = ("model", "step", "weights", "task", "examples", "metric", "value", "std. error", "settings that differ")
NUMBERS = (1, 4, 6, 7)
TICKS = 8  # of an axis of lengths, at most: more of them overlap


class Row(NamedTuple):
    """One figure of one result."""

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
    places = {folder_of(path).resolve(): path for path in paths}.values()  # a run and its step have the same results
    found = [Row(r, name, m) for path in places for r in read_results(path, damaged) for name, m in r.metrics.items()]
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
    for result, name, metric in rows:
        settings = ", ".join(f"{key} {result.settings.get(key)}" for key in varied[result.task])
        subject, error = result.subject, "" if metric.stderr is None else f"{metric.stderr:.4g}"
        who = (subject.name, f"{subject.step}", subject.weights, result.task, f"{result.examples:,}")
        cells.append((*who, name, f"{metric.value:.6g}", error, settings))
    return aligned(cells, right=NUMBERS)


def _varied(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Task -> the settings in which its results differ."""
    found: dict[str, list[str]] = {}
    for task in {row.result.task for row in rows}:
        settings = [row.result.settings for row in rows if row.result.task == task]
        keys = dict.fromkeys(key for one in settings for key in one)
        found[task] = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    return found


def plot(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each figure: over length where it has one, else over the FLOPs of training."""
    kinds = dict.fromkeys(row.kind for row in rows)
    figure, panels = subplots(
        5.0 * min(3, len(kinds)), 3.6 * -(-len(kinds) // 3), -(-len(kinds) // 3), min(3, len(kinds))
    )
    for panel, kind in zip(panels.flat, kinds):
        over_length = any(row.length for row in rows if row.kind == kind)
        for name, x, y, error in _series([row for row in rows if row.kind == kind]):
            panel.errorbar(x, y, yerr=error, marker="o", capsize=3, label=name, linestyle="-" if over_length else "")
        panel.set_xscale("log", base=2 if over_length else 10)
        if over_length:  # powers of two say little of lists of 40 to 480 entries
            lengths = sorted({row.length for row in rows if row.kind == kind and row.length})
            shown = lengths[:: -(-len(lengths) // TICKS)]
            panel.set_xticks(shown, [f"{length:,}" for length in shown])
            panel.minorticks_off()
        panel.set_xlabel("length (entries or tokens)" if over_length else "compute of training (FLOPs)")
        panel.set_ylabel(f"{kind[0]}: {kind[1].rstrip('@')}")
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    named = {label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(named.values(), named, loc="outside lower center", ncols=panels.shape[1], fontsize=8, frameon=False)
    return save(figure, path)


def _series(rows: Sequence[Row]) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    """Name, places, values and standard errors: of one model over length, or of each model over its steps."""
    names = dict.fromkeys((row.result.subject.name, row.result.subject.weights) for row in rows)
    for name, weights in names:
        own = [r for r in rows if (r.result.subject.name, r.result.subject.weights) == (name, weights)]
        points = [(row.length or row.result.subject.flops or 1.0, row.metric) for row in own]
        points.sort(key=lambda point: point[0])  # two results of other settings may have the same place
        label = name if weights == "trained" else f"{name}, {weights}"
        yield label, [x for x, _ in points], [m.value for _, m in points], [m.stderr or 0.0 for _, m in points]


def main(argv: list[str]) -> int:
    """Print the table, and draw it where asked; the exit code is not 0 where a file is left out as damaged."""
    parser = parser_for("results", "What did evaluations of these models find?", EXAMPLES)
    parser.add_argument("models", nargs="+", type=local_path, help="run folders, step folders, or exported files")
    parser.add_argument("--task", type=str | None, default=None, help="results of this task only")
    parser.add_argument("--metric", type=str | None, default=None, help="this figure only, such as acc or acc@480")
    parser.add_argument("--plot", type=local_path, default=None, help="draw them too, into this .png file")
    values = parser.parse_args(argv)
    left_out: list[UserError] = []

    def damaged(error: UserError) -> None:
        print(f"error: left out: {error}", file=sys.stderr)
        left_out.append(error)

    rows = rows_of(values.models, values.task, values.metric, damaged)
    print(table(rows))
    if values.plot:
        print(f"drawn: {plot(rows, values.plot)}")
    return left_out[0].code if left_out else 0


if __name__ == "__main__":
    run_command(main)
