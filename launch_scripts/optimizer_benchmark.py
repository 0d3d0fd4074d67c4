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
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sweep import summary

from lit_gpt.config.cli import parse
from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.parallel import world_size
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.loop import run_training
from lit_gpt.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("optimizers.csv")
FAILED = "failed.txt"
COLUMNS: list[str] = ["optimizer", "scale", "val_loss", "train_loss", "tokens", "tokens_per_sec", "seconds", "state"]
Row = dict[str, str]


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


def read_table(path: Path, scale: str) -> dict[str, Row]:
    """Optimizer -> its row for a scale. Raises UserError for a table without rows for it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file) if scale in row["sizes"].split()}
    if not rows:
        raise UserError(f"{path} has no row for the scale {scale} (column 'sizes').")
    return rows


def choose(rows: dict[str, Row], wanted: str) -> list[str]:
    """Names from a list with commas, in any spelling, or all. Raises UserError for one that the table lacks."""
    typed = sorted(rows) if wanted == "all" else [name for name in wanted.split(",") if name]
    names = [name if name in rows else OPTIMIZERS.resolve(name) for name in typed]
    for name in names:
        if name not in rows:
            raise UserError(f"The table has no optimizer {name!r}.{did_you_mean(name, rows)} It has {', '.join(rows)}.")
    return names


def command(row: Row, scale_name: str, given: argparse.Namespace, common: Sequence[str]) -> list[str]:
    """The options of pretrain.py for one optimizer."""
    scale, name = SCALES[scale_name], row["optimizer"]
    tokens = int(given.max_tokens or scale.tokens)
    steps, warmup = max(tokens // scale.batch, 1), int(row.get("warmup_steps") or scale.warmup)
    options: dict[str, Any] = {
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
    words = [f"--{key}={value}" for key, value in options.items()]
    return [*words, *common, f"--out_dir={given.output / scale_name / name}", "--resume=auto"]


def train(words: list[str], folder: Path) -> int:
    """One run in this process; what went wrong is kept in the folder. Returns its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    try:
        code, reason = run_training(resolve_run(parse(words), world_size())), ""
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code, reason = error.code, str(error)
    except Exception as error:  # whatever a library raises (no convergence, no memory) ends one run, not all
        traceback.print_exc()
        code, reason = 1, f"{type(error).__name__}: {error}"
    if reason:
        write_text(folder / FAILED, reason + "\n")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return code


def run_all(names: list[str], rows: dict[str, Row], given: argparse.Namespace, common: Sequence[str]) -> bool:
    """Train what is not finished, one after the other; whether it was interrupted."""
    for number, name in enumerate(names, 1):
        folder = given.output / given.scale / name
        if summary(folder).get("finished"):
            continue
        print(f"[{number}/{len(names)}] {name}", flush=True)
        if train(command(rows[name], given.scale, given, common), folder) == os.EX_TEMPFAIL:
            return True
    return False


def run_workers(names: list[str], given: argparse.Namespace, common: Sequence[str]) -> bool:
    """Deal the optimizers to one process per GPU; whether one was interrupted."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(given.workers)))
    devices, processes = visible.split(","), []
    for i in range(given.workers):
        words = [sys.executable, __file__, "--optimizers", ",".join(names[i :: given.workers]), "--report", "false"]
        for key in ("scale", "output", "train_data_dir", "val_data_dir", "max_tokens", "micro_bsz", "table"):
            if getattr(given, key) is not None:
                words += [f"--{key}", str(getattr(given, key))]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices[i % len(devices)]}
        processes.append(subprocess.Popen([*words, "--", *common], env=environment))
    return os.EX_TEMPFAIL in [process.wait() for process in processes]


def results(names: list[str], output: Path, scale: str) -> list[dict[str, Any]]:
    """One row per optimizer, lowest validation loss first, those without one last."""
    rows = []
    for name in names:
        folder = output / scale / name
        run, failed = summary(folder), folder / FAILED
        state = "finished" if run.get("finished") else f"at step {run['step']}" if run else "not run"
        if failed.exists():
            state = f"failed: {failed.read_text(encoding='utf-8').strip()}"
        values = [run.get(key) for key in ("metric/val_loss@1x", "train_loss", "tokens", "throughput/tokens_per_sec")]
        rows.append(dict(zip(COLUMNS, [name, scale, *values, run.get("time/train"), state])))
    return sorted(rows, key=lambda row: (row["state"] != "finished", row["val_loss"] is None, row["val_loss"]))


def report(rows: list[dict[str, Any]], table: dict[str, Row], output: Path, scale: str) -> None:
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
    made.add_argument("--report", choices=["true", "false"], default="true", help=argparse.SUPPRESS)
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
    stopped = run_workers(names, given, common) if given.workers > 1 else run_all(names, table, given, common)
    rows = results(names, given.output, given.scale)
    if given.report == "true":
        report(rows, table, given.output, given.scale)
        print((given.output / f"{given.scale}.md").read_text(encoding="utf-8"))
    if stopped:
        print("interrupted; the same command goes on")
        return os.EX_TEMPFAIL
    return 0 if all(row["state"] == "finished" for row in rows) else 1


if __name__ == "__main__":
    run_command(main)
