"""What the figures of plots/ share before they draw: one command line, groups of runs, and a law fitted to each."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import write
from lit_gpt.lab.fit_report import Report, as_json, judge
from lit_gpt.lab.fit_runs import columns_of, finished_runs, fixed_of, grouped, sample
from lit_gpt.lab.runs import Run, check_apart
from lit_gpt.scaling.intervals import LEVEL
from lit_gpt.scaling.laws import law_named

RUNS = "run folders, folders that hold some (a study), or CSV files, also exported charts of Weights & Biases"


class FigureParser(PlainParser):
    """Knows the words of ArchScale's guide, too: --log_dir OUT --output_file F.png is OUT --output F.png."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does."""
        words = [piece for word in (sys.argv[1:] if args is None else args) for piece in _split(word)]
        named = ["--output" if word == "--output_file" else word for word in words]
        return super().parse_args([word for word in named if word != "--log_dir"], namespace)


def _split(word: str) -> list[str]:
    """--log_dir=OUT as two words; others as they are."""
    return word.split("=", 1) if word.startswith(("--log_dir=", "--output_file=")) else [word]


def parser_of(name: str, description: str, example: str, group: str | None = None) -> PlainParser:
    """The command line that the figures share. name: of the script, and of what it writes."""
    parser = FigureParser(prog=f"python plots/{name}.py", description=description)
    parser.examples = [(f"python plots/{name}.py {example}", "writes a PNG, a PDF of the same name and a JSON")]
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help=RUNS)
    parser.add_argument("--output", type=Path, default=Path(f"{name}.png"), help="picture to write, a PNG file")
    parser.add_argument("--json", type=Path, help="file for all that was fitted; default: the picture's name in .json")
    meant = "column or setting whose values are drawn apart"
    parser.add_argument("--group", default=group, help=meant + ("" if group else "; default: each path given"))
    parser.add_argument("--where", help="take the runs of which this is true, such as 'depth >= 8'; default: all")
    parser.add_argument("--repeated", action="store_true", help="also take runs that saw some data more than once")
    return parser


def add_fit(parser: argparse.ArgumentParser, x: Sequence[str] = ()) -> None:
    """The options of a fit. x: columns that the law reads unless others are chosen."""
    default = f"; default: {' '.join(x)}" if x else "; default: the law's"
    column = "column, or SYMBOL=COLUMN of one of several, as python -m lit_gpt.tools.fit --help lists them"
    parser.add_argument("--x", nargs="+", default=list(x), help=column + default)
    parser.add_argument("--y", default="loss", help="column that is explained")
    parser.add_argument(
        "--fix", nargs="+", default=[], metavar="NAME=NUMBER", help="numbers that are known; default: none"
    )
    parser.add_argument("--noise", type=float, help="standard deviation of equal runs; default: what residuals say")
    parser.add_argument("--samples", type=int, default=1000, help="resamples behind each interval")
    parser.add_argument("--level", type=float, default=LEVEL, help="share of all cases that an interval holds")


def groups_of(given: Any, needed: Sequence[str]) -> dict[str, list[Run]]:
    """Finished runs by the value of --group, in the order of numbers; without it by the path that they are of.

    needed: columns without which a run is left out, which is said on stderr. Raises UserError for paths that share a
    run where each is a group.
    """

    def runs(paths: Sequence[Path]) -> list[Run]:
        kept, notes = finished_runs(paths, given.where, needed, given.repeated)
        say(notes)
        return kept

    if given.group:
        found = grouped(runs(given.runs), given.group)
        return {_named(name, given.group): found[name] for name in sorted(found, key=_natural)}
    if len(given.runs) == 1:
        return {"": runs(given.runs)}
    check_apart(given.runs)
    ends = [path.absolute().name if path.is_dir() else path.stem for path in given.runs]
    names = ends if len(set(ends)) == len(ends) else list(map(str, given.runs))
    found = {name: runs([path]) for name, path in zip(names, given.runs)}
    say(copies(found))
    return found


def copies(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """That groups have runs of equal numbers, speed and time too where they are known, as a copied folder has."""
    first: dict[tuple[Any, ...], tuple[str, str]] = {}
    both: dict[tuple[str, str], list[str]] = {}
    for group, runs in groups.items():
        for run in runs:
            other, _ = first.setdefault(tuple(sorted(run.numbers.items())), (group, run.name))
            if other != group:
                both.setdefault((group, other), []).append(run.name)
    return [
        f"note: {len(names)} of {len(groups[group])} runs of {group} equal one of {other} in every number, such as "
        f"{names[0]}: if they are copies, they are compared with themselves"
        for (group, other), names in both.items()
    ]


def say(notes: Sequence[str]) -> None:
    """Print what is not in the figure to stderr."""
    for note in notes:
        print(note, file=sys.stderr)


def say_notes(reports: Mapping[str, Report]) -> None:
    """Print what the numbers of laws cannot say, once for all groups that share it."""
    notes: dict[str, list[str]] = {}
    for group, report in reports.items():
        for note in report.notes:
            notes.setdefault(note, []).append(group)
    for note, groups in notes.items():
        of = "" if groups == [""] else f"{groups[0]}: " if len(groups) == 1 else f"{len(groups)} groups: "
        say([f"note: {of}{note}"])


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """A key that sorts d8 before d16, and 8 before 16."""
    parts = [part for part in re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name) if part]
    return [(not part[0].isdigit(), float(part) if part[0].isdigit() else 0.0, part) for part in parts]


def _named(value: str, group: str) -> str:
    """A value that is a word, or a number after its column: sparsity 8."""
    try:
        return f"{group} {float(value):.6g}"
    except ValueError:
        return value


@dataclass(frozen=True)
class Fits:
    """A law fitted to groups of runs. refused: group -> why it has none; its runs are in `groups` all the same."""

    groups: Mapping[str, Sequence[Run]]
    reads: Mapping[str, str]
    reports: Mapping[str, Report]
    refused: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """All numbers, by group; of the one group without a name, its numbers themselves."""
        found = {group: as_json(report) for group, report in self.reports.items()}
        found |= {group: {"refused": why} for group, why in self.refused.items()}
        return found[""] if list(found) == [""] else {"groups": found}


def fit_groups(given: Any, law_name: str, least: Callable[[Sequence[Run]], str | None] = lambda _: None) -> Fits:
    """The law of each group. least: why a group is not fitted, or None.

    Raises UserError where no group has a law, with what is wrong with the first one.
    """
    law, fixed = law_named(law_name), fixed_of(given.fix)
    reads = columns_of(law, given.x, given.y)
    groups = groups_of(given, [name for symbol, name in reads.items() if symbol not in law.labels])
    samples = {group: sample(law, runs, reads) for group, runs in groups.items()}

    def fit(group: str) -> Report:
        if why := least(groups[group]):
            raise UserError(why)
        return judge(law_name, law, samples[group], fixed, given.noise, given.samples, given.level)

    return Fits(groups, reads, *fit_each(groups, fit, "law"))


def fit_each(names: Iterable[str], fit: Callable[[str], Report], what: str) -> tuple[dict[str, Report], dict[str, str]]:
    """The fit of each name that has one, and why the others have none; that and the fits' notes go to stderr.

    what: is fitted, in words. Raises UserError where none has one, with what is wrong with the first one.
    """
    reports, refused = dict[str, Report](), dict[str, str]()
    for name in names:
        try:
            reports[name] = fit(name)
        except UserError as error:
            refused[name] = str(error)
    if not reports:
        raise UserError(next(iter(refused.values())))
    say([f"no {what} of {name}: {why}" for name, why in refused.items()])
    say_notes(reports)
    return reports, refused


def finish(given: Any, figure: Any, found: Mapping[str, Any]) -> None:
    """Write the files and print their paths."""
    for path in write(figure, given.output, found, given.json):
        print(path)
