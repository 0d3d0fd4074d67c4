"""Train one model with many optimizers, everything else equal, and compare: a CSV, a Markdown table, a figure.

    python launch_scripts/optimizer_benchmark.py --scale 60m --optimizers all --output out/optimizers \\
        --train_data_dir data/mine --val_data_dir data/mine

The protocol is that of two published benchmarks: one model, batch, budget, warm-up and clipping per scale
(optimizer_scales.py), with a cosine; schedule-free optimizers keep a constant rate after the warm-up. Only what
optimizers.csv beside this file says, or --table, differs among optimizers. Run the same command again after anything:
finished runs are skipped, others go on. With --plan nothing starts, and what all runs cost is printed. What follows
`--` are options of pretrain.py that go to every run, and overrule.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from optimizer_scales import SCALES, TABLE, scales_of

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.config.run import RunConfig
from lit_gpt.config.words import read_tokens
from lit_gpt.errors import UserError
from lit_gpt.lab.display import Display
from lit_gpt.lab.local import LOG, run_rows
from lit_gpt.lab.processes import CPU, Place, Settings, devices_of
from lit_gpt.lab.queue import Queue
from lit_gpt.lab.results import METRIC
from lit_gpt.lab.rows import Row, read_pairs, summary
from lit_gpt.lab.speeds import speeds_for
from lit_gpt.scaling.noise import in_blocks
from lit_gpt.utils.files import write_text


def parser() -> PlainParser:
    """The options of this script."""
    made = PlainParser(
        description=(__doc__ or "").split("\n")[0], epilog="Options of pretrain.py for all runs follow after --."
    )
    made.add_argument("--scale", required=True, help=f"models with commas between them, of {', '.join(SCALES)}")
    made.add_argument(
        "--optimizers",
        default="all",
        help="names with commas between them, all, or published, those that the benchmark of the scale has values for",
    )
    made.add_argument("--train_data_dir", required=True, help="folder with the tokens to train on")
    made.add_argument("--val_data_dir", required=True, help="folder with the tokens to validate on")
    made.add_argument(
        "--output", type=Path, default=Path("out/optimizers"), help="runs in <output>/<scale>/<optimizer>"
    )
    made.add_argument(
        "--max_tokens", type=tokens, help="tokens of each run, to make it shorter; default: the published budget"
    )
    made.add_argument("--seeds", type=int, default=1, help="runs of each optimizer; more can be added later")
    made.add_argument("--micro_bsz", type=int, help="sequences per forward pass; default: those that were published")
    made.add_argument(
        "--table", type=Path, default=TABLE, help="hyper-parameters; default: optimizers.csv beside this script"
    )
    made.add_argument(
        "--gpus",
        default="",
        help="a run at a time on each, such as 0,1 or 0,0,1,1 or cpu,cpu; default: all GPUs, else the CPU",
    )
    made.add_argument("--per_run", type=int, default=1, help="number of GPUs of each run, which torchrun starts")
    made.add_argument("--plan", action="store_true", help="print what the runs cost, and start nothing")
    return made


def tokens(typed: str) -> int:
    """A count of tokens as pretrain.py takes it, such as 1e9 or 1B."""
    try:
        if (count := int(read_tokens(typed))) >= 1:
            return count
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{typed!r} is no count of tokens; give one such as 1e9, 1B or 500M")


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, Sequence[str]]:
    """The parsed options of this script, and those of pretrain.py after them."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    return parser().parse_args(argv[:split]), argv[split + 1 :]


answer_early(__name__, read)

import torch
from optimizer_options import choose, options_of, read_table

from lit_gpt.lab.leftovers import release_rows
from lit_gpt.lab.planning import plan_rows, plan_text

ROOT = Path(__file__).resolve().parents[1]
COLUMNS: list[str] = ["optimizer", "scale", "seed", "val_loss", "perplexity", "train_loss", "tokens", "tokens_per_sec",
                      "seconds", "state"]  # fmt: skip
Result = dict[str, Any]  # of one run: COLUMNS
OWN = {  # option of pretrain.py -> what is said where it stands behind the --
    "--max_tokens": "Give --max_tokens before the --: warm-up and evaluations are made for it.",
    "--seed": "Leave --seed out: every run has its own. --seeds before the -- says how many there are.",
    "--optimizer": "Leave --optimizer out: every run has its own. --optimizers before the -- names them.",
    "--out_dir": "Leave --out_dir out: every run has its own. --output before the -- is the folder of all.",
    "--dry_run": "Leave --dry_run out: --plan before the -- says what would run, and starts nothing.",
    "--resume": "Leave --resume out: the same command goes on with every run.",
}


def rows_of(scale_name: str, given: argparse.Namespace) -> list[Row]:
    """The runs at a scale: every seed of every optimizer. The first seed is the default one, and not in their names."""
    scale = SCALES[scale_name]
    table = read_table(given.table, scale)
    data = {
        "train_data_dir": given.train_data_dir,
        "val_data_dir": given.val_data_dir,
        "micro_bsz": given.micro_bsz or scale.micro_batch(given.per_run),
    }
    rows = []
    for name in choose(table, given.optimizers, scale.source):
        options = options_of(table[name], scale, given.max_tokens or 0, **data)
        rows.append(Row(name, options))
        for seed in range(RunConfig.seed + 1, RunConfig.seed + given.seeds):
            rows.append(Row(f"{name}_seed{seed}", {**options, "seed": seed}))
    return rows


def places(gpus: str, per_run: int) -> tuple[Place, ...]:
    """The devices of each run at a time. Without --gpus: all GPUs that this process sees, else one run on the CPU."""
    if not gpus and torch.cuda.is_available():
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return devices_of(gpus or ",".join([CPU] * per_run), per_run)


def train(
    rows: Sequence[Row], output: Path, given: argparse.Namespace, overruling: Sequence[str]
) -> tuple[Mapping[str, str], bool]:
    """Train what is not finished, one run at a time in each place; (run -> what became of it, whether it was cut)."""
    display = Display(rows)
    queue = Queue(rows, output, display.say)
    settings = Settings(devices=places(given.gpus, given.per_run), overruling=tuple(overruling))
    release_rows(rows, output, display.say)
    interrupted = run_rows(queue, settings, display)
    display.close()
    return queue.states, interrupted


def plan(rows: Sequence[Row], output: Path, given: argparse.Namespace, overruling: Sequence[str]) -> str:
    """What the runs are and cost, which needs no data and no GPU. Raises UserError with what is wrong with any."""
    extra = read_pairs(overruling)
    plans = plan_rows([Row(row.name, {**row.options, **extra}) for row in rows], given.per_run)
    return plan_text(plans, output, speeds_for(None, rows, output, CPU in given.gpus), [])


def reason(log: Path) -> str:
    """Why a run failed: its last error message, else the last line of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*said[-1:], *lines[-1:]]), "it said nothing")


def results(rows: Sequence[Row], output: Path, scale: str, states: Mapping[str, str]) -> list[Result]:
    """What came of each run. states: what became of those of this call."""
    found = []
    for row in rows:
        folder = output / row.name
        run = summary(folder)
        state = "finished" if run.get("finished") else f"at step {run['step']}" if run else "not run"
        if state != "finished" and row.name in states:
            state = f"{states[row.name]}: {reason(folder / LOG)}"
        values = [run.get(key) for key in ("train_loss", "tokens", "throughput/tokens_per_sec", "time/train")]
        loss, seed = run.get(METRIC), row.options.get("seed", RunConfig.seed)
        found.append(
            dict(zip(COLUMNS, [row.options["optimizer"], scale, seed, loss, perplexity(loss), *values, state]))
        )
    return found


def perplexity(loss: float | None) -> float | None:
    """exp of a loss in nats per token; infinite where that is beyond all numbers."""
    return None if loss is None else math.exp(loss) if loss < 700 else math.inf


def by_optimizer(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """Optimizer -> its runs, lowest mean loss first, and last those of which none is finished."""
    groups: dict[str, list[Result]] = {}
    for run in runs:
        groups.setdefault(run["optimizer"], []).append(run)

    def rank(name: str) -> tuple[bool, float]:
        losses = numbers(groups[name], "val_loss")
        return all(run["state"] != "finished" for run in groups[name]), fmean(losses) if losses else math.inf

    return {name: groups[name] for name in sorted(groups, key=rank)}


def numbers(runs: Sequence[Result], column: str) -> list[float]:
    """The values of the finished runs."""
    return [run[column] for run in runs if run["state"] == "finished" and run[column] is not None]


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and behind +- the standard deviation over seeds where there are several; "-" without any value."""
    mean = f"{fmean(values):{form}}" if values else "-"
    return f"{mean} +- {stdev(values):{form}}" if len(values) > 1 and math.isfinite(fmean(values)) else mean


def above_best(groups: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """How far each loss is above the best optimizer's, with half of its interval of 95%; {} where no noise is known.

    Runs of one seed see the same data in the same order, so what a seed does to all optimizers is taken out.
    """
    runs = [run for group in groups.values() for run in group if run["state"] == "finished"]
    losses = {(run["optimizer"], run["seed"]): run["val_loss"] for run in runs if run["val_loss"] is not None}
    found = in_blocks(losses, next(iter(losses))[0]) if losses else {}
    return {name: f"{d.value:.4f} +- {d.half():.4f}" for name, d in found.items() if d.is_known and d.error}


def report(runs: Sequence[Result], table: Mapping[str, Mapping[str, str]], output: Path, scale: str) -> None:
    """Write <output>/<scale>.csv with a line per run, .md with a line per optimizer, and .png."""
    groups = by_optimizer(runs)
    above = above_best(groups)
    with (output / f"{scale}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(run for group in groups.values() for run in group)
    lines = [
        f"| optimizer | validation loss |{' above the best |' if above else ''} perplexity | seeds | rate | tokens/s "
        "| hyper-parameters from | |",
        f"|---|---:|{'---:|' if above else ''}---:|---:|---:|---:|---|---|",
    ]
    for name, group in groups.items():
        loss, exp = spread(numbers(group, "val_loss"), ".4f"), spread(numbers(group, "perplexity"), ".2f")
        speeds = numbers(group, "tokens_per_sec")
        speed = f"{fmean(speeds):,.0f}" if speeds else "-"
        left = "; ".join(dict.fromkeys(run["state"].split("\n")[0] for run in group if run["state"] != "finished"))
        gap = [above.get(name, "-")] if above else []
        cells = [f"`{name}`", loss, *gap, exp, str(len(numbers(group, "val_loss"))), table[name]["eta0"], speed]
        lines.append(f"| {' | '.join([*cells, table[name]['source'], left])} |")
    write_text(output / f"{scale}.md", "\n".join(lines) + "\n")
    if any(run["state"] == "finished" and run["val_loss"] is not None for run in runs):
        figure = str(output / f"{scale}.png")
        plot = [sys.executable, str(ROOT / "plots/plot_optimizers.py"), str(output / scale), "--output", figure]
        subprocess.run(plot, check=True)


def side_by_side(found: Mapping[str, Sequence[Result]]) -> str:
    """Perplexities of optimizers (rows) at scales (columns), in the order of the first scale."""
    groups = {scale: by_optimizer(runs) for scale, runs in found.items()}
    names = dict.fromkeys(name for of_scale in groups.values() for name in of_scale)
    lines = [f"| perplexity | {' | '.join(groups)} |", f"|---|{'---:|' * len(groups)}"]
    for name in names:
        cells = [spread(numbers(groups[scale].get(name, []), "perplexity"), ".2f") for scale in groups]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def check(given: argparse.Namespace, common: Sequence[str]) -> None:
    """Raise UserError for numbers with which nothing would run, and for options behind -- that each run has of its own.

    common: what stands behind the --.
    """
    for word in common:
        if (option := word.split("=")[0]) in OWN:
            raise UserError(OWN[option])
    for name in ("seeds", "per_run", "micro_bsz"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    if given.gpus:
        places(given.gpus, given.per_run)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark. Returns 0, 1 when an optimizer failed, 75 when interrupted."""
    given, common = read(argv)
    check(given, common)
    chosen = {name: rows_of(name, given) for name in scales_of(given.scale)}
    if given.plan:
        for name, rows in chosen.items():
            print(f"{name}\n\n{plan(rows, given.output / name, given, common)}\n")
        return 0
    given.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Result]] = {}
    for name, rows in chosen.items():
        states, stopped = train(rows, given.output / name, given, common)
        found[name] = results(rows, given.output / name, name, states)
        report(found[name], read_table(given.table, SCALES[name]), given.output, name)
        print((given.output / f"{name}.md").read_text(encoding="utf-8"))
        if stopped:
            print("interrupted; the same command goes on")
            return os.EX_TEMPFAIL
    if len(found) > 1:
        write_text(given.output / "perplexity.md", side_by_side(found))
        print((given.output / "perplexity.md").read_text(encoding="utf-8"))
    return 0 if all(run["state"] == "finished" for runs in found.values() for run in runs) else 1


if __name__ == "__main__":
    run_command(main)
