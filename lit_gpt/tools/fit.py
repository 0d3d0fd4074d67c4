"""A scaling law fitted to runs, with intervals, residuals, predictions, and the run to train next.

python -m lit_gpt.tools.fit out/ladder --law power --hold_out largest --predict 1e21
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.lab.fit_figure import draw_fits
from lit_gpt.lab.fit_report import Guess, Report, as_json, judge, verdicts
from lit_gpt.lab.fit_runs import (
    Sample,
    columns_of,
    finished_runs,
    fixed_of,
    grouped,
    held_out,
    lowest_per,
    needed_by,
    part,
    sample,
)
from lit_gpt.lab.fit_text import as_text, guess_lines, head
from lit_gpt.lab.runs import COLUMNS
from lit_gpt.scaling.intervals import LEVEL
from lit_gpt.scaling.law import Law
from lit_gpt.scaling.laws import LAWS, law_named
from lit_gpt.tools._cli import local_path, parser_for
from lit_gpt.utils.files import write_text
from lit_gpt.utils.text import aligned

ABOUT = (
    "Fit a scaling law to finished runs: its numbers with intervals, how far each run is from it, and what it predicts."
)
EXAMPLES = (
    ("out/ladder --law power", "loss over compute, with an offset; --x tokens or --x parameters for another quantity"),
    ("out/ladder --law power --hold_out largest", "is the largest run where the others say that it would be?"),
    ("out/laptop --law power --fix c=0 --lowest_per depth", "of a grid of rates, the best one of each depth"),
    ("out/grid --law chinchilla --predict 1e21", "the loss at a budget, and the parameters and tokens that reach it"),
    ("out/isoflop --law isoflop --next 1e20 --output next.yaml", "the run to train next, for pretrain.py --config"),
    (
        'runs.csv --law power --x tokens --where "depth >= 8" --group family',
        "a table of anyone's runs, a law for each family",
    ),
)
FILE = {"type": local_path, "default": None, "metavar": "FILE"}
SOME = {"nargs": "+", "default": []}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {  # option -> how it is read, and its meaning
    "--x": (
        {"type": str, "metavar": "COLUMN", **SOME},
        "column that the law reads, or SYMBOL=COLUMN of one of several; default: the law's",
    ),
    "--y": ({"type": str | None, "default": None, "metavar": "COLUMN"}, "column that it explains; default: the loss"),
    "--fix": (
        {"type": str, "metavar": "NAME=NUMBER", **SOME},
        "numbers that are known, such as c=0 or E=1.7; default: none",
    ),
    "--where": (
        {"type": str | None, "default": None, "metavar": "CONDITION"},
        "fit the runs of which this is true, such as 'depth >= 8 and seed == 1'; default: all",
    ),
    "--group": (
        {"type": str | None, "default": None, "metavar": "COLUMN"},
        "a law for each value of a column or setting; default: one law",
    ),
    "--lowest_per": (
        {"type": str | None, "default": None, "metavar": "COLUMN"},
        "fit only the lowest losses: of each value of this column or setting, such as depth or flops, the "
        "configuration whose mean is the lowest; default: all runs",
    ),
    "--repeated": (
        {"type": bool, "nargs": "?", "const": True, "default": False},
        "also take runs that saw some of their data more than once",
    ),
    "--hold_out": (
        {"type": str | None, "default": None, "metavar": "NAME"},
        "fit without these runs, and say whether they are where the law predicts them: a name, a pattern such as d24*, "
        "or largest; default: none",
    ),
    "--predict": (
        {"type": float, "metavar": "BUDGET", **SOME},
        "what runs of these budgets will reach; FLOPs, or units of --x; default: none",
    ),
    "--next": (
        {"type": float | None, "default": None, "metavar": "BUDGET"},
        "write the options of the run that spends this budget best to --output; default: none",
    ),
    "--output": ({**FILE, "default": Path("next.yaml")}, "file that --next writes"),
    "--noise": (
        {"type": float | None, "default": None, "metavar": "NUMBER"},
        "standard deviation of runs that differ in their seed only, in units of --y; default: what residuals say",
    ),
    "--samples": ({"type": int, "default": 1000, "metavar": "NUMBER"}, "resamples behind each interval"),
    "--level": ({"type": float, "default": LEVEL, "metavar": "SHARE"}, "share of all cases that an interval holds"),
    "--json": (FILE, "file for all numbers; default: none"),
    "--plot": (FILE, "picture of the fit, a PNG file; default: none"),
}


def build_parser() -> Parser:
    """The command line."""
    laws = " ".join(f"{name}: {law_named(name).sentence}" for name in LAWS.names())
    parser = parser_for("fit", ABOUT, EXAMPLES, epilog=_columns())
    parser.add_argument(
        "runs", nargs="+", type=local_path, help="run folders, folders that hold some (a study), or CSV files"
    )
    parser.add_argument("--law", type=str, required=True, help=f"the law. {laws}")
    for name, (read, meaning) in OPTIONS.items():
        parser.add_argument(name, **read, help=meaning)
    return parser


def _columns() -> str:
    listed = "; ".join(f"{name}: {words}" for name, words in COLUMNS.items())
    return (
        f"Columns are {listed}; any setting of a run, such as train_model; and results of evaluations as task/figure."
    )


answer_early(__name__, lambda words: build_parser().parse_args(words))

from lit_gpt.lab.next_run import write_next


def main(argv: list[str]) -> int:
    """Fit, print, and write what was asked for."""
    parser = build_parser()
    values = parser.parse_args(argv)
    if values.group is not None and values.next is not None:
        raise UserError("--next needs one law, and --group makes several. Choose runs with --where instead.")
    if values.plot and values.plot.suffix != ".png":
        raise UserError(f"--plot is {values.plot}, and pictures are PNG files. Give a name that ends in .png.")
    law, fixed = law_named(values.law), fixed_of(values.fix)
    reads = columns_of(law, values.x, values.y)
    needed = needed_by(law, reads)
    runs, left = finished_runs(values.runs, values.where, needed, values.repeated, law.every_step)
    lowest: dict[str, tuple[str, ...]] = {}
    reports: dict[str, Report] = {}
    out: dict[str, Sample | None] = {}
    for group, members in grouped(runs, values.group).items():
        try:
            if values.lowest_per is not None:
                members, lowest[group] = lowest_per(members, values.lowest_per, reads[law.explains])
            reports[group], out[group] = _fitted(values, law, sample(law, members, reads), fixed)
        except UserError as error:
            words = f"{values.group} {group}: {error}" if group else str(error)
            raise UserError(
                " ".join([words, *(f"{note[0].upper()}{note[1:].rstrip('.')}." for note in left)])
            ) from error
    guesses = {group: [r.at_budget(b) for b in values.predict] for group, r in reports.items()}
    for group, report in reports.items():
        title = f"{values.group} {group}\n\n" if group else ""
        print(title + _page(report, guesses[group], out[group], left, lowest.get(group, ())), end="\n\n")
    _write(values, reports, guesses, out)
    return 0


def _fitted(values: Any, law: Law, whole: Sample, fixed: Mapping[str, float]) -> tuple[Report, Sample | None]:
    """The fit to these runs, and those that --hold_out keeps from it."""
    out, used = None, whole
    if values.hold_out is not None:
        rows = held_out(law, whole, values.hold_out)
        out, used = part(whole, rows), part(whole, ~rows)
    name = LAWS.resolve(values.law)
    return judge(name, law, used, fixed, values.noise, values.samples, values.level), out


def _page(
    report: Report, guesses: Sequence[Guess], out: Sample | None, left: Sequence[str], used: Sequence[str]
) -> str:
    """What is printed of one fit."""
    parts = ["\n".join([*head(report), *used])]
    parts += [f"{title}\n{aligned(rows, indent=2, right=range(1, len(rows[0])))}" for title, rows in as_text(report)]
    if notes := [*left, *report.notes]:
        parts.append("\n".join(f"warning: {note}" for note in notes))
    if out is not None:
        parts.append("held out\n" + "\n".join(f"  {line}" for line in _verdicts(report, out)))
    parts += ["predicted at " + "\n  ".join(guess_lines(report, guess)) for guess in guesses]
    return "\n\n".join(parts)


def _verdicts(report: Report, out: Sample) -> list[str]:
    found = []
    for name, guess, seen, inside in verdicts(report, out):
        if guess.low != guess.low:
            found.append(f"{name}: {seen:.4f}, the law says {guess.loss:.4f}; there is no interval")
            continue
        where = "inside" if inside else "OUTSIDE"
        found.append(
            f"{name}: {seen:.4f} is {where} {guess.low:.4f} to {guess.high:.4f}; the law says {guess.loss:.4f}"
        )
    return found


def _write(
    values: Any, reports: dict[str, Report], guesses: dict[str, list[Guess]], out: dict[str, Sample | None]
) -> None:
    if values.json:
        found = {group: as_json(report, guesses[group], out[group]) for group, report in reports.items()}
        values.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(values.json, json.dumps(found if values.group else found[""], indent=1) + "\n")
        print(f"written: {values.json}")
    if values.plot:
        print(f"drawn: {draw_fits(reports, guesses, out, values.plot)}")
    if values.next is not None:
        resolved, _ = write_next(reports[""], values.next, values.output)
        plan = resolved.plan
        print(
            f"written: {values.output}, depth {plan.depth}, {plan.tokens:.4g} tokens in {plan.steps:,} steps of "
            f"{plan.batch_tokens:,}. Train it: python pretrain.py --config {values.output}"
        )
        print(*(f"note: {note}" for note in resolved.notes), sep="\n")


if __name__ == "__main__":
    run_command(main)
