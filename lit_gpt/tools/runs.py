"""Runs of all folders in one table: find, filter, sort and compare them.

lit_gpt/lab/runs.py has the columns, and lit_gpt/lab/where.py what an expression may be.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.lab.repeats import ELSEWHERE, KINDS, SEEDS, noise_of, repeated, varied
from lit_gpt.lab.run_files import STATES
from lit_gpt.lab.runs import COLUMNS, Run, read_runs
from lit_gpt.lab.where import matching, numbers, values
from lit_gpt.scaling.noise import mean
from lit_gpt.tools._cli import LeftOut, local_path, parser_for
from lit_gpt.utils.files import told, write_text
from lit_gpt.utils.text import aligned

EXAMPLES = (
    ("out", "all runs below a folder"),
    ("out more.csv --where 'depth == 8 and loss < 2' --sort loss", "some of them, the best first"),
    ("out --columns depth,eta0,loss,'tokens / parameters' --csv runs.csv", "columns of one's own, as a file too"),
    ("out/a out/b --compare", "what differs between two runs"),
    ("out --noise", "how much runs differ that should be the same"),
)
OUTCOMES = ("tokens", "parameters", "loss")  # columns that are always shown
MOST = 8  # settings that a table shows without being asked


def columns_of(runs: Sequence[Run], given: str | None) -> list[str]:
    """The columns of a table: those given, or the first settings that differ and what came of them."""
    if given:
        return [part for part in _split(given) if part]
    return [*varied(runs)[:MOST], *OUTCOMES]


def chosen(runs: Sequence[Run], where: str | None, order: str | None) -> list[Run]:
    """The runs that a condition is true of, sorted; those without a value come last. order: -loss is descending.

    Raises UserError where none is left.
    """
    kept = matching(runs, where) if where else list(runs)
    if not kept:
        raise UserError(f"None of {len(runs)} runs has {where}. Loosen --where, or list all without it.")
    if not order:
        return kept
    falling = order.startswith("-")
    keys = dict(zip(map(id, kept), values(kept, order[1:] if falling else order)))
    known = [run for run in kept if keys[id(run)] is not None]
    numeric = all(isinstance(keys[id(run)], int | float) for run in known)
    known.sort(key=lambda run: keys[id(run)] if numeric else str(keys[id(run)]), reverse=falling)
    return known + [run for run in kept if keys[id(run)] is None]


def table(runs: Sequence[Run], columns: Sequence[str]) -> str:
    """A line for each run, and how many there are of each state."""
    cells = [("run", "state", *columns), *zip([run.name for run in runs], [run.state for run in runs], *(
        [shown(value) for value in values(runs, name)] for name in columns
    ))]  # fmt: skip
    right = [i for i, name in enumerate(columns, 2) if not all(map(math.isnan, numbers(runs, name)))]
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in dict.fromkeys((*STATES, *counts)) if counts[state])
    return f"{aligned(cells, right=right)}\n\n{len(runs)} run{'s' * (len(runs) > 1)}: {states}"


def shown(value: Any) -> str:
    """A value as a table has it."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}" if abs(value) >= 1e5 or abs(value) < 1e-3 else f"{value:.5g}"


def as_csv(runs: Sequence[Run], columns: Sequence[str]) -> str:
    """The same table for other programs, with all digits; empty cells where a run has no value.

    Seeds and counts of tokens are whole numbers, as they were given, though runs keep all numbers as floats.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "state", *columns])
    found = [[_whole(value) for value in values(runs, name)] for name in columns]
    writer.writerows([run.name, run.state, *cells] for run, *cells in zip(runs, *found))
    return text.getvalue()


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def compared(runs: Sequence[Run]) -> str:
    """What differs between runs, side by side: settings, and then numbers. Raises UserError for one run."""
    if len(runs) < 2:
        raise UserError(f"--compare shows what differs between runs, and {runs[0].name} is one. Give another one, too.")
    settings = varied(runs, but=())
    names = [name for name in COLUMNS if len({run.numbers.get(name) for run in runs}) > 1]
    lines = [("", *(run.name for run in runs)), ("state", *(run.state for run in runs))]
    lines += [(name, *(shown(run.settings.get(name)) for run in runs)) for name in settings if name not in names]
    lines += [(name, *(shown(run.numbers.get(name)) for run in runs)) for name in names]
    return aligned(lines)


def noise_table(runs: Sequence[Run]) -> str:
    """The groups of runs that differ in their seeds alone, and the noise of each kind.

    Raises UserError where no run was repeated.
    """
    groups = repeated(runs)
    if not groups:
        raise UserError(
            f"No two of these {len(runs)} runs differ in their seeds alone and have a loss. Repeat some with "
            "--seed or --data_seed, and with validation data."
        )
    differ = varied([group[0] for group in groups], but=(*ELSEWHERE, *SEEDS))[:MOST]
    lines = [(*differ, "runs", "mean loss", *KINDS)]
    for group in groups:
        settings = [shown(group[0].settings.get(key)) for key in differ]
        middle = mean([float(run.value("loss")) for run in group])
        lines.append((*settings, str(len(group)), f"{middle.value:.4f}", *(_spread(group, k) for k in KINDS)))
    lines.append((*["all"][: len(differ)], *[""] * (len(differ) - 1), "", "", *(_spread(runs, k) for k in KINDS)))
    says = "\n".join(f"{kind}: {words}" for kind, words in KINDS.items())
    return f"{aligned(lines)}\n\nStandard deviations of single runs, with their degrees of freedom in brackets.\n{says}"


def _spread(runs: Sequence[Run], kind: str) -> str:
    noise = noise_of(runs, kind).noise
    return f"{noise.deviation:.4f} ({noise.free})" if noise.free else "-"


def names(runs: Sequence[Run]) -> str:
    """Every name that an expression may have: columns with words, evaluations, and settings."""
    known = [(name, words) for name, words in COLUMNS.items() if any(name in run.numbers for run in runs)]
    others = dict.fromkeys(key for run in runs for key in run.numbers if key not in COLUMNS)
    settings = dict.fromkeys(key for run in runs for key in run.settings)
    states = [(f"state == '{state}'", words) for state, words in STATES.items()]
    return aligned([("name", "of the run"), *states, *known, *((name, "evaluation") for name in others),
                    *((name, "setting") for name in settings if name not in COLUMNS)])  # fmt: skip


def _split(given: str) -> list[str]:
    """Parts between commas that stand in no brackets: max(a, b) is one."""
    parts, depth = [""], 0
    for letter in given:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def main(argv: list[str]) -> int:
    """Print the table that was asked for; the exit code is not 0 where a run is left out, as a file is damaged."""
    parser = parser_for("runs", "Find, filter and compare runs.", EXAMPLES)
    parser.add_argument(
        "paths", type=local_path, nargs="+", metavar="FOLDER", help="folder that holds runs at any depth, or a CSV file"
    )
    parser.add_argument(
        "--where", type=str | None, default=None, help="condition, such as 'depth == 8 and loss < 2'; default: all runs"
    )
    parser.add_argument(
        "--columns",
        type=str | None,
        default=None,
        help="columns, settings and expressions, with commas; default: settings that differ, tokens, parameters, loss",
    )
    parser.add_argument(
        "--sort",
        type=str | None,
        default=None,
        help="column to sort by; --sort=-loss has the highest first; default: by name",
    )
    parser.add_argument("--csv", type=Path | None, default=None, help="file for the table, or - to print it as CSV")
    parser.add_argument("--compare", action="store_true", help="what differs between the runs, side by side")
    parser.add_argument("--noise", action="store_true", help="how much runs differ that should be the same")
    parser.add_argument("--names", action="store_true", help="list the names that --where and --columns may have")
    given = parser.parse_args(argv)
    left_out = LeftOut()
    runs = read_runs(given.paths, left_out)
    if not runs:
        return left_out.code
    runs = chosen(runs, given.where, given.sort)
    columns = columns_of(runs, given.columns)
    if given.csv == Path("-"):
        print(as_csv(runs, columns), end="")
        return left_out.code
    if given.csv:
        with told(given.csv):
            given.csv.parent.mkdir(parents=True, exist_ok=True)
            write_text(given.csv, as_csv(runs, columns))
    if given.names or given.compare or given.noise:
        print(names(runs) if given.names else compared(runs) if given.compare else noise_table(runs))
    else:
        print(table(runs, columns))
    return left_out.code


if __name__ == "__main__":
    run_command(main)
