"""Train one model with many optimizers, everything else equal, and compare: a CSV, a Markdown table, a figure.

    python launch_scripts/optimizer_benchmark.py --scale 60m --optimizers all --output out/optimizers \\
        --train_data_dir data/mine --val_data_dir data/mine

The protocol is that of two published benchmarks: LLaMA shapes, and one batch, budget, warm-up and clipping per scale
(SCALES), with a cosine; schedule-free optimizers keep a constant rate after the warm-up. Only what optimizers.csv
beside this file says, or --table, differs among optimizers. Run the same command again after anything: finished runs
are skipped, others go on. What follows `--` are options of pretrain.py that go to every run, and overrule.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.display import Display
from lit_gpt.lab.local import LOG, run_rows
from lit_gpt.lab.processes import CPU, Settings
from lit_gpt.lab.queue import Queue
from lit_gpt.lab.results import METRIC
from lit_gpt.lab.rows import Row, summary
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("optimizers.csv")
COLUMNS: list[str] = ["optimizer", "scale", "val_loss", "train_loss", "tokens", "tokens_per_sec", "seconds", "state"]
Values = dict[str, str]  # a row of the table


class Scale(NamedTuple):
    """What optimizers share unless the table says otherwise.

    batch: in tokens. warmup, steps: of the published run; a shorter one has as large a part of warm-up.
    final: last rate over peak rate. clip: largest norm of all gradients together.
    """

    depth: int
    batch: int
    steps: int
    warmup: int
    final: float
    weight_decay: float
    clip: float

    @property
    def tokens(self) -> int:
        """The published budget."""
        return self.batch * self.steps


# The first four: OpenRaiser/scaling-for-scaling, stage 1, whose README clips at 1 (its scripts do not). The others:
# the launch scripts of arXiv:2509.01440.
SCALES = {
    "60m": Scale(8, 2**17, 10_000, 1_000, 0.1, 0.0, 1.0),
    "130m": Scale(12, 2**17, 20_000, 2_000, 0.1, 0.0, 1.0),
    "350m": Scale(24, 2**17, 60_000, 6_000, 0.1, 0.0, 1.0),
    "1b": Scale(24, 2**17, 100_000, 10_000, 0.1, 0.0, 1.0),
    "124m": Scale(12, 2**17, 128_000, 2_000, 0.01, 0.1, 0.5),
    "210m": Scale(24, 2**17, 128_000, 2_000, 0.01, 0.1, 0.5),
    "720m": Scale(12, 1_015_808, 48_000, 2_000, 0.01, 0.1, 0.1),
}


def read_table(path: Path, scale: str) -> dict[str, Values]:
    """Optimizer -> its row for a scale. Raises UserError for a table without rows for it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file) if scale in row["sizes"].split()}
    if not rows:
        raise UserError(f"{path} has no row for the scale {scale} (column 'sizes').")
    return rows


def choose(rows: dict[str, Values], wanted: str) -> list[str]:
    """Names from a list with commas, in any spelling, or all. Raises UserError for one that the table lacks."""
    typed = sorted(rows) if wanted == "all" else [name for name in wanted.split(",") if name]
    names = [name if name in rows else OPTIMIZERS.resolve(name) for name in typed]
    for name in names:
        if name not in rows:
            raise UserError(f"The table has no optimizer {name!r}.{did_you_mean(name, rows)} It has {', '.join(rows)}.")
    return names


def options_of(row: Values, scale_name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The options of pretrain.py for one optimizer."""
    scale, name = SCALES[scale_name], row["optimizer"]
    tokens = int(given.max_tokens or scale.tokens)
    steps, warmup = max(tokens // scale.batch, 1), int(row.get("warmup_steps") or scale.warmup)
    return {
        "train_data_dir": given.train_data_dir,
        "val_data_dir": given.val_data_dir,
        "train_model": f"llama_{scale_name}",
        "depth": scale.depth,
        "train_name": "benchmark",
        "parameterization": "plain",
        "batch_rule": "none",
        "optimizer": name,
        "schedule": (EXTERNAL[name].schedule if name in EXTERNAL else None) or "cosine",
        "max_tokens": tokens,
        "total_bsz": scale.batch,
        "micro_bsz": given.micro_bsz,
        "grad_clip": scale.clip,
        "eval_step": max(steps // 10, 1),
        "num_extrp": 1,
        "keep_last": 1,
        "base_hps.d0": scale.depth,
        "base_hps.b0": scale.batch,
        "base_hps.t0": tokens,
        "base_hps.warmup_tokens": tokens * warmup / scale.steps,
        "base_hps.min_lr_mult": scale.final,
        "base_hps.weight_decay": scale.weight_decay,
        **{f"base_hps.{k}": row[k] for k in ("eta0", "weight_lr_scale", "beta1", "beta2", "eps", "muon_beta")},
        **({"optimizer_args": row["args"]} if row["args"] else {}),
        **json.loads(row.get("options") or "{}"),
    }


def train(rows: Sequence[Row], given: argparse.Namespace, overruling: Sequence[str]) -> tuple[Mapping[str, str], bool]:
    """Train what is not finished, one run at a time on each GPU; (run -> what became of it, whether it was cut)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(given.workers)))
    devices = visible.split(",") if torch.cuda.is_available() else [CPU]
    places = tuple((devices[i % len(devices)],) for i in range(given.workers))
    display = Display(rows)
    queue = Queue(rows, given.output / given.scale, display.say)
    interrupted = run_rows(queue, Settings(devices=places, overruling=tuple(overruling)), display)
    display.close()
    return queue.states, interrupted


def reason(log: Path) -> str:
    """Why a run failed: its last error message, else the last line of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*said[-1:], *lines[-1:]]), "it said nothing")


def results(names: list[str], output: Path, scale: str, states: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per optimizer, lowest validation loss first, those without one last. states: what became of runs."""
    rows = []
    for name in names:
        folder = output / scale / name
        run = summary(folder)
        state = "finished" if run.get("finished") else f"at step {run['step']}" if run else "not run"
        if state != "finished" and name in states:
            state = f"{states[name]}: {reason(folder / LOG)}"
        values = [run.get(key) for key in (METRIC, "train_loss", "tokens", "throughput/tokens_per_sec")]
        rows.append(dict(zip(COLUMNS, [name, scale, *values, run.get("time/train"), state])))
    return sorted(rows, key=lambda row: (row["state"] != "finished", row["val_loss"] is None, row["val_loss"]))


def report(rows: list[dict[str, Any]], table: dict[str, Values], output: Path, scale: str) -> None:
    """Write <output>/<scale>.csv, .md and .png."""
    with (output / f"{scale}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| optimizer | validation loss | rate | tokens/s | hyper-parameters from | |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        name = row["optimizer"]
        loss, speed = (
            "-" if row[k] is None else f"{row[k]:{f}}" for k, f in (("val_loss", ".4f"), ("tokens_per_sec", ",.0f"))
        )
        state = "" if row["state"] == "finished" else row["state"].split("\n")[0]
        lines.append(f"| `{name}` | {loss} | {table[name]['eta0']} | {speed} | {table[name]['source']} | {state} |")
    write_text(output / f"{scale}.md", "\n".join(lines) + "\n")
    if any(row["val_loss"] is not None for row in rows):
        figure = str(output / f"{scale}.png")
        plot = [sys.executable, str(ROOT / "plots/plot_optimizers.py"), str(output / scale), "--output", figure]
        subprocess.run(plot, check=True)


def parser() -> PlainParser:
    """The options of this script."""
    made = PlainParser(
        description=(__doc__ or "").split("\n")[0], epilog="Options of pretrain.py for all runs follow after --."
    )
    made.add_argument("--scale", required=True, choices=SCALES, help="size of the model, of a published benchmark")
    made.add_argument("--optimizers", default="all", help="names with commas between them, or all")
    made.add_argument("--train_data_dir", required=True, help="folder with the tokens to train on")
    made.add_argument("--val_data_dir", required=True, help="folder with the tokens to validate on")
    made.add_argument(
        "--output", type=Path, default=Path("out/optimizers"), help="runs in <output>/<scale>/<optimizer>"
    )
    made.add_argument(
        "--max_tokens", type=float, help="tokens of each run, to make it shorter; default: the published budget"
    )
    made.add_argument("--micro_bsz", type=int, default=64, help="sequences per forward pass")
    made.add_argument(
        "--table", type=Path, default=TABLE, help="hyper-parameters; default: optimizers.csv beside this script"
    )
    made.add_argument("--workers", type=int, default=1, help="number of processes, one per GPU of CUDA_VISIBLE_DEVICES")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the benchmark. Returns 0, 1 when an optimizer failed, 75 when interrupted."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    given, common = parser().parse_args(argv[:split]), argv[split + 1 :]
    if any(word.split("=")[0] == "--max_tokens" for word in common):
        raise UserError("Give --max_tokens before the --: warm-up and evaluations are made for it.")
    table = read_table(given.table, given.scale)
    names = choose(table, given.optimizers)
    given.output.mkdir(parents=True, exist_ok=True)
    rows = [Row(name, options_of(table[name], given.scale, given)) for name in names]
    states, stopped = train(rows, given, common)
    found = results(names, given.output, given.scale, states)
    report(found, table, given.output, given.scale)
    print((given.output / f"{given.scale}.md").read_text(encoding="utf-8"))
    if stopped:
        print("interrupted; the same command goes on")
        return os.EX_TEMPFAIL
    return 0 if all(row["state"] == "finished" for row in found) else 1


if __name__ == "__main__":
    run_command(main)
