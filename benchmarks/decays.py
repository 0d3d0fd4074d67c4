"""What do decays cost? One trunk with forks, one run with several decays, and fresh runs of each budget, compared.

    python benchmarks/decays.py --output out/decays --gpus 0,0,0,0 -- \\
        --config benchmarks/recipes/decays.yaml --train_data_dir data/py4k --val_data_dir data/py4k --ema 0.5M,2M

For each seed and each budget of 0.5, 1, 2 and 4 units: `fresh` is a run of that budget (wsd), `fork` decays from a
trunk at a constant rate, `wsd_s` is one run that decays at the end of all four, and `trunk` is the trunk itself there,
with its averages. All decay over the last quarter of the budget. Prints the loss on all validation data, and what each
way differs from fresh runs (mean over seeds, and its standard error from the spread of the pairs), writes them as JSON,
and draws them. Run the same command again after anything: what is finished is skipped. What follows `--` goes to every
run; the batch is --total_bsz before it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import looks
from lit_gpt.metrics.figures import save, subplots
from lit_gpt.metrics.labels import axis_label
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.scaling.noise import mean
from lit_gpt.utils.files import write_text

SWEEP = Path(__file__).resolve().parents[1] / "launch_scripts" / "sweep.py"
BUDGETS = (0.5, 1.0, 2.0, 4.0)  # in units
SHARE = 4  # a decay takes one part in so many of its budget
LOSS = "metric/val_loss@1x"
WAYS = {
    "fresh": "run of this budget",
    "fork": "fork of the trunk",
    "wsd_s": "one run, four decays",
    "trunk": "trunk, not decayed",
}
Losses = dict[str, dict[int, dict[float, float]]]  # way -> seed -> budget -> loss


def first_rows(unit: int, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Trunks, runs with several decays, and fresh runs. unit: tokens."""
    every = unit // 2 // SHARE * (SHARE - 1)  # a fork starts after a multiple of this
    for seed in seeds:
        ends = ",".join(f"{int(b * unit)}" for b in BUDGETS)
        common = {"seed": seed, "decay_fraction": 1 / SHARE}
        kept = {"save": every, "keep_last": 1000, "eval": unit // 2}
        yield {"name": f"trunk_{seed}", "schedule": "constant", "tokens": int(BUDGETS[-1] * unit), **kept, **common}
        yield {"name": f"wsd_s_{seed}", "schedule": "wsd_s", "decay_at": ends, **common}
        for budget in BUDGETS:
            yield {"name": f"fresh_{budget:g}_{seed}", "schedule": "wsd", "tokens": int(budget * unit), **common}


def forks(unit: int, seeds: Sequence[int], batch: int, output: Path) -> Iterator[dict[str, Any]]:
    """A fork of the trunk for every budget."""
    for seed in seeds:
        trunk = next(iter((output / f"trunk_{seed}").glob("*/checkpoints")), None)
        if trunk is None:
            raise UserError(f"There is no trunk of seed {seed} in {output}: its run failed, see its log.txt.")
        for budget in BUDGETS:
            tokens = int(budget * unit)
            step = (tokens - tokens // SHARE) // batch
            start = {"fork_from": trunk / f"step-{step:06d}", "decay_tokens": tokens // SHARE}
            yield {"name": f"fork_{budget:g}_{seed}", "tokens": tokens, "seed": seed, **start}


def as_options(row: dict[str, Any], batch: int) -> dict[str, str]:
    """A row of the sweep's table."""
    named = {"tokens": "max_tokens", "save": "save_step", "eval": "eval_step"}
    steps = {key: value // batch if key in ("save", "eval") else value for key, value in row.items()}
    return {named.get(key, key): str(value) for key, value in steps.items()}


def sweep(rows: Sequence[dict[str, str]], table: Path, given: argparse.Namespace) -> None:
    """Run a table of options."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    gpus = ["--gpus", given.gpus] if given.gpus else []
    words = [sys.executable, str(SWEEP), str(table), "--output", str(given.output), *gpus, "--", *given.options]
    if code := subprocess.run(words).returncode:
        raise UserError(f"Not every run ended well (code {code}): see log.txt in the folders of {given.output}.")


def read(output: Path, unit: int, seeds: Sequence[int]) -> Losses:
    """Every loss that the runs in `output` end with, or have at the end of a budget."""
    losses: Losses = {}
    for seed in seeds:
        for way in ("fresh", "fork"):
            ends = {b: _at(output / f"{way}_{b:g}_{seed}", LOSS, int(b * unit)) for b in BUDGETS}
            losses.setdefault(way, {})[seed] = ends
        for way in ("wsd_s", "trunk"):
            folder = output / f"{way}_{seed}"
            for key in _validations(folder):
                average = key.removeprefix("metric/val_loss").removesuffix("@1x").replace("_ema_", ", average over ")
                found = {b: _at(folder, key, int(b * unit)) for b in BUDGETS}
                losses.setdefault(way + average, {})[seed] = found
    return losses


def _validations(folder: Path) -> list[str]:
    keys = read_metrics(next(folder.glob("*/metrics.jsonl")))
    return sorted(key for key in keys if key.startswith("metric/val_loss") and key.endswith("@1x"))


def _at(folder: Path, key: str, tokens: int) -> float:
    """The loss of the validation at or right after `tokens` tokens."""
    curves = read_metrics(next(folder.glob("*/metrics.jsonl")))
    for seen, loss in zip(curves["total_tokens"], curves[key]):
        if seen >= tokens and math.isfinite(loss):
            return float(loss)
    raise UserError(f"{folder} has no {key} after {tokens:,} tokens.")


def compared(losses: Losses) -> dict[str, dict[str, dict[str, float]]]:
    """way -> budget -> mean loss, mean difference to fresh runs of the same seed, and its standard error."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for way, of_seeds in losses.items():
        for budget in BUDGETS:
            pairs = [of_seeds[seed][budget] - losses["fresh"][seed][budget] for seed in of_seeds]
            loss, bias = statistics.fmean(of_seeds[seed][budget] for seed in of_seeds), mean(pairs)
            values = {"loss": loss, "bias": bias.value, "standard_error": bias.error}
            rows.setdefault(way, {})[f"{budget:g}"] = values
    return rows


def draw(rows: dict[str, dict[str, dict[str, float]]], unit: int, path: Path) -> None:
    """Loss over the budget, and how far the runs that decayed are from fresh ones."""
    figure, ((left, right),) = subplots(11, 4.2, 1, 2)
    drawn = [way for way in rows if not way.startswith("wsd_s, ")]  # an average over decays of one run says little
    for way, look in zip(drawn, looks(len(drawn))):  # of one way in both panels
        cells = rows[way]
        kind, _, average = way.partition(", ")
        x, label = [float(budget) for budget in cells], f"trunk, {average}" if average else WAYS[kind]
        line, style = "--" if kind == "trunk" else "-", {"color": look.color, "marker": look.marker, "label": label}
        left.plot(x, [c["loss"] for c in cells.values()], line, markersize=5, alpha=0.8, **style)
        if kind in ("fork", "wsd_s") and not average:
            errors = [0.0 if math.isnan(c["standard_error"]) else c["standard_error"] for c in cells.values()]
            bias = [c["bias"] for c in cells.values()]
            right.errorbar(x, bias, errors, capsize=3, **style)
    right.axhline(0, color="black", linewidth=0.8)
    difference = "loss minus that of a run of this budget\n(nats per token; bars: one standard error)"
    for axes, label in ((left, axis_label(LOSS)), (right, difference)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(BUDGETS, [f"{budget:g}" for budget in BUDGETS])
        axes.set_xlabel(f"budget (units of {unit / 1e6:.3g}M training tokens)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def main(arguments: Sequence[str]) -> None:
    """Run, read, print, write, draw."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = PlainParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--gpus", help="GPUs that train one run each at a time, such as 0,0,1,1; default: one run on all"
    )
    parser.add_argument("--unit_steps", type=int, default=256, help="steps of one unit of the budgets, a multiple of 8")
    parser.add_argument("--total_bsz", type=int, default=32768, help="tokens of a step")
    parser.add_argument("--seeds", default="1,2", help="seeds; there is a run of each kind for each")
    given = parser.parse_args(list(arguments)[:at])
    given.options = [*list(arguments)[at + 1 :], "--total_bsz", str(given.total_bsz)]
    if given.unit_steps % (2 * SHARE):
        raise UserError(f"--unit_steps {given.unit_steps} is no multiple of {2 * SHARE}.")
    unit, seeds, batch = given.unit_steps * given.total_bsz, [int(s) for s in given.seeds.split(",")], given.total_bsz
    sweep([as_options(row, batch) for row in first_rows(unit, seeds)], given.output / "first.csv", given)
    rows = [as_options(row, batch) for row in forks(unit, seeds, batch, given.output)]
    sweep(rows, given.output / "forks.csv", given)
    table = compared(read(given.output, unit, seeds))
    for way, cells in table.items():
        shown = "  ".join(f"{c['loss']:.4f} {c['bias']:+.4f}+-{c['standard_error']:.4f}" for c in cells.values())
        print(f"{way:<28} {shown}")
    write_text(given.output / "decays.json", json.dumps({"unit_tokens": unit, "losses": table}, indent=1) + "\n")
    draw(table, unit, given.output / "decays.png")


if __name__ == "__main__":
    run_command(main)
