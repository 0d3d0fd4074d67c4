"""Plan and run a study: many runs of pretrain.py that answer one question.

    python launch_scripts/ladder.py launch_scripts/studies/laptop.yaml plan
    python launch_scripts/ladder.py launch_scripts/studies/flops.yaml run --output out/flops --gpus 0,1,2,3 -- \\
        --train_data_dir data/mine --val_data_dir data/mine

The study is a YAML file (docs/ladders.md), or a CSV table with a column `name` and one per option. `plan` prints every
run, FLOPs, GPU hours, memory and disk, and starts nothing. `run` trains: finished runs are skipped, interrupted ones go
on, so type the same command again after anything. `scripts` prints a script to start the runs elsewhere. What follows
`--` are options of pretrain.py for all runs, which overrule those of `base` in the study.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.processes import CPU, Settings, devices_of, torchrun
from lit_gpt.lab.results import METRIC, varied
from lit_gpt.lab.rows import read_pairs
from lit_gpt.lab.speeds import speeds_for

PICTURES = (".png", ".pdf", ".svg")


def build_parser() -> PlainParser:
    """The options of this script."""
    parser = PlainParser(
        description=(__doc__ or "").split("\n")[0], epilog="Options of pretrain.py for all runs follow after --."
    )
    parser.add_argument("study", type=Path, help="YAML file of a study, or CSV file with a row for each run")
    parser.add_argument(
        "action", choices=["plan", "run", "scripts"], help="plan prints runs and costs, run trains, scripts prints"
    )
    parser.add_argument("--output", type=Path, help="folder of the study; default: out/ and the study's file name")
    parser.add_argument("--only", default="", help="names of runs in this order, with commas; default: all")
    parser.add_argument(
        "--gpus",
        default="",
        help="a run at a time on each, such as 0,1 or 0,0,1,1 or cpu,cpu; default: one run on all GPUs",
    )
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="start the next run beside the end of the last one, as early as starts take, so that no GPU waits for "
        "imports and compilation; its memory must hold two runs",
    )
    parser.add_argument("--per_run", type=int, default=1, help="number of GPUs of each run, which torchrun starts")
    parser.add_argument("--tries", type=int, default=2, help="starts of a run that fails")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="longest time of one run; default: no limit"
    )
    parser.add_argument("--metric", default=METRIC, help="key of summary.json that says which run is best")
    parser.add_argument(
        "--speed",
        help="FLOPs per second of a GPU, or a JSON of benchmarks/train_step.py; default: finished runs, else an H200",
    )
    parser.add_argument(
        "--slurm",
        metavar="PARAMETERS",
        help="with run: submit an array through submitit, with such parameters as timeout_min=240,slurm_partition=gpu; "
        "with scripts: print an sbatch script; default: run here",
    )
    parser.add_argument("--plot", type=Path, help="with plan: file for a figure of the learning rates; default: none")
    return parser


def checked(given: Namespace) -> Namespace:
    """The same. Raises UserError for numbers with which nothing would run, and a picture of no known kind."""
    for key in ("per_run", "tries", "minutes"):
        if not (value := getattr(given, key)) > 0:  # nor NaN
            raise UserError(f"--{key} is {value:g}; it must be above 0.")
    if given.overlap and (given.action != "run" or given.slurm is not None):
        raise UserError("--overlap is for `run` on this machine, where runs share its GPUs; leave it out here.")
    if given.plot and given.plot.suffix not in PICTURES:
        raise UserError(f"--plot is {given.plot}; give a name that ends in {', '.join(PICTURES)}.")
    return given


def read(argv: Sequence[str]) -> tuple[Namespace, Sequence[str]]:
    """The parsed options of this script, and those of pretrain.py after them."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    return checked(build_parser().parse_args(argv[:split])), argv[split + 1 :]


answer_early(__name__, read)

from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.planning import Planned, plan_rows, plan_text
from lit_gpt.lab.schedules import draw_schedules
from lit_gpt.lab.scripts import array_script, shell_script
from lit_gpt.lab.study import Study, read_study


def main(argv: Sequence[str]) -> int:
    """Do what is asked. Returns 0, 1 when a run failed, 75 when interrupted."""
    given, common = read(argv)
    study = read_study(given.study, read_pairs(common))
    given.output = given.output or Path("out") / given.study.stem
    known = [row.name for row in study.rows]
    only = [given.only] if given.only in known else [name for name in given.only.split(",") if name]
    ladder = Ladder(study, given.output, given.metric, only)
    for name in only:
        if name not in (names := [row.name for row in ladder.known()]):
            raise UserError(f"The study has no run {name!r}.{did_you_mean(name, names)} `plan` lists them.")
    plans = plan_rows(ladder.known(), given.per_run)
    if given.action == "plan":
        show(study, plans, given)
        return 0
    launcher = tuple(torchrun(given.per_run)) if given.per_run > 1 and not given.gpus else ()
    places = devices_of(given.gpus, given.per_run)
    settings = Settings(launcher, places, given.tries, given.minutes, overlap=given.overlap)
    words = [str(given.study), *passed_on(given), "--", *common]
    if given.action == "scripts":
        left = [row.name for row in ladder.known()]
        array = array_script(left, words, given.per_run, given.minutes)
        print(array if given.slurm is not None else shell_script(plans, given.per_run, given.output))
        return 0
    if given.slurm is not None:
        return ladder.submit(words, given.slurm)
    return ladder.run(settings, plans)


def show(study: Study, plans: Sequence[Planned], given: Namespace) -> None:
    """Print the plan, and draw its schedules where that is asked for."""
    rows = [p.row for p in plans]
    parts = [study.question] if study.question else []
    speeds = speeds_for(given.speed, rows, given.output, CPU in given.gpus)
    parts.append(plan_text(plans, given.output, speeds, varied(rows)))
    parts += [f"figure     {draw_schedules(plans, given.plot)}"] if given.plot else []
    print("\n\n".join(parts))


def passed_on(given: Namespace) -> list[str]:
    """The options that a job of one run gets, too."""
    keys = ("output", "per_run", "tries", "metric")
    return [word for key in keys for word in (f"--{key}", str(getattr(given, key)))]


if __name__ == "__main__":
    run_command(main)
