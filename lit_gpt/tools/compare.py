"""Do two commits, settings, layouts or backends differ by more than noise?

    python -m lit_gpt.tools.compare out/a out/b --control out/c out/d
    python -m lit_gpt.tools.compare --run 'attention=auto' 'attention=plain' --seeds 3 -- --train_model samba --depth 8
    python -m lit_gpt.tools.compare --commits v1.0 HEAD -- --train_model samba --depth 8

A side is a run, or a folder of runs that differ in their seeds alone. Noise is the spread within both sides and within
the controls. What two runs were asked, planned and run with is compared, too. A difference whose 95%
interval holds 0 is a tie.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.comparison import compare
from lit_gpt.lab.runs import Run, check_apart, read_runs
from lit_gpt.lab.trials import commits, side_of, train
from lit_gpt.lab.where import matching
from lit_gpt.tools._cli import local_path
from lit_gpt.tools._run_differences import differences
from lit_gpt.tools.runs import table


def report(a: Sequence[Run], b: Sequence[Run], controls: Sequence[Run], figure: str) -> str:
    """The runs, the verdict, and what differs between the first two. Raises UserError where that cannot be said."""
    found = compare(a, b, controls, figure)
    sides = [("a", a), ("b", b), ("control", controls)]
    named = [replace(run, name=f"{side}: {run.name}") for side, runs in sides for run in runs]
    shown = table(named, ["seed", "data_seed", figure]).rsplit("\n\n", 1)[0]
    parts = [shown, found.in_words()]
    if a[0].folder and b[0].folder:
        parts.append(differences(a[0].folder, b[0].folder))
    return "\n\n".join(parts)


def trained(given: Namespace, common: Sequence[str]) -> list[Path]:
    """The folders of both sides, after training what is not there yet."""
    launcher, seeds = shlex.split(given.launcher), range(1, given.seeds + 1)
    if given.commits:
        with commits(given.commits, launcher) as sides:
            return [train(side, seeds, common, given.output) for side in sides]
    return [train(side_of(n, typed, launcher), seeds, common, given.output) for n, typed in zip("ab", given.run)]


def main(argv: list[str]) -> int:
    """Print the comparison."""
    split = argv.index("--") if "--" in argv else len(argv)
    given, common = _parser().parse_args(argv[:split]), argv[split + 1 :]
    if sum(map(bool, (given.sides, given.run, given.commits))) != 1 or len(given.sides) not in (0, 2):
        raise UserError(
            "Give two folders of runs to compare, or --run with two settings, or --commits with two commits."
        )
    if given.sides and common:
        raise UserError(
            "Options of pretrain.py after -- go with --run and --commits. Leave them out to compare folders."
        )
    if given.seeds < 1:
        raise UserError(f"--seeds is {given.seeds}; it must be at least 1.")
    check_apart(given.sides)
    folders = given.sides or trained(given, common)
    a, b = (_read([folder], given.where) for folder in folders)
    print(report(a, b, _read(given.control, given.where), given.metric))
    return 0


def _read(paths: Sequence[Path], where: str | None) -> list[Run]:
    runs = read_runs(paths)
    chosen = matching(runs, where) if where else runs
    if runs and not chosen:
        raise UserError(f"No run in {paths[0]} has {where}. Loosen --where.")
    return chosen


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="python -m lit_gpt.tools.compare",
        description="Do two commits, settings, layouts or backends differ by more than noise?",
        epilog="Options of pretrain.py for the runs of --run and --commits follow after --.",
    )
    add = parser.add_argument
    add("sides", type=local_path, nargs="*", metavar="FOLDER", help="two runs, or folders of runs that differ in seeds")
    add("--control", type=local_path, nargs="+", default=[], metavar="FOLDER",
        help="runs whose differences are noise; default: none, and the noise is that within the sides")  # fmt: skip
    add("--run", nargs=2, metavar="SETTINGS",
        help="train and compare these two: 'optimizer=muonh depth=8', or 'launcher=\"torchrun --nproc_per_node 2\"'; "
        "default: none")  # fmt: skip
    add("--commits", nargs=2, metavar="COMMIT",
        help="train with these two commits, a dot for the files as they are now; default: none")  # fmt: skip
    add("--seeds", type=int, default=3, help="runs of each side that --run and --commits train")
    add("--output", type=local_path, default=Path("out/compare"), help="folder of these runs")
    add("--launcher", default=sys.executable, help="what starts these runs; default: this Python")
    add("--metric", default="loss", help="column of python -m lit_gpt.tools.runs --names to compare")
    add("--where", help="condition that chooses runs, such as 'depth == 8'; default: all runs")
    return parser


if __name__ == "__main__":
    run_command(main)
