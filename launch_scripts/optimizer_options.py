"""The options of one run of optimizer_benchmark.py: of a scale, and of a row of its table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer_scales import Scale

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.optim import EXTERNAL, OPTIMIZERS

Values = dict[str, str]  # a row of the table
VALUES = ("eta0", "weight_lr_scale", "beta1", "beta2", "eps", "muon_beta")  # columns that are options of base_hps
NEEDED = ("optimizer", "sizes", *VALUES, "args", "source")  # columns; the others may be left out


def read_table(path: Path, scale: Scale) -> dict[str, Values]:
    """Optimizer -> its row for a scale. Raises UserError for a table without rows for it, or without a column."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
            raise UserError(f"{path} is no table of optimizers: it lacks the column {', '.join(lacking)}.")
        rows = {row["optimizer"]: row for row in reader if scale.size in (row["sizes"] or "").split()}
    if not rows:
        raise UserError(f"{path} has no row for {scale.size} (column 'sizes').")
    return rows


def choose(rows: Mapping[str, Values], wanted: str, source: str = "") -> list[str]:
    """Names from a list with commas, in any spelling; or all; or published, those with values of that source.

    Raises UserError for a name that the table lacks.
    """
    if wanted in ("all", "published"):
        return sorted(name for name in rows if wanted == "all" or rows[name]["source"].startswith(source))
    typed = [name for name in wanted.split(",") if name]
    if not typed:
        raise UserError("--optimizers names none. Give names with commas between them, all, or published.")
    names = list(dict.fromkeys(name if name in rows else OPTIMIZERS.resolve(name) for name in typed))
    for name in names:
        if name not in rows:
            raise UserError(f"The table has no optimizer {name!r}.{did_you_mean(name, rows)} It has {', '.join(rows)}.")
    return names


def options_of(row: Values, scale: Scale, tokens: int, **data: Any) -> dict[str, Any]:
    """The options of pretrain.py for one optimizer. tokens: the budget, 0 for the published one. data: of all runs."""
    name, tokens = row["optimizer"], tokens or scale.tokens
    steps, warmup = max(tokens // scale.batch, 1), number(row, "warmup_steps", scale.warmup)
    return {
        **data,
        "train_model": scale.family,
        "depth": scale.depth,
        "train_name": "benchmark",
        "parameterization": "plain",
        "batch_rule": "none",
        "optimizer": name,
        "schedule": (EXTERNAL[name].schedule if name in EXTERNAL else None) or "cosine",
        "max_tokens": tokens,
        "total_bsz": scale.batch,
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
        **{f"base_hps.{k}": row[k] for k in VALUES},
        **({"optimizer_args": row["args"]} if row["args"] else {}),
        **scale.options,
        **options(row),
    }


def number(row: Values, column: str, default: int) -> int:
    """A cell of a column that may be left out. Raises UserError for one that is no whole number."""
    try:
        return int(row.get(column) or default)
    except ValueError as error:
        raise UserError(
            f"{column} of {row['optimizer']} in the table is {row[column]!r}; give a whole number."
        ) from error


def options(row: Values) -> dict[str, Any]:
    """The options of pretrain.py in the table's column of this name. Raises UserError where it is no JSON object."""
    try:
        found = json.loads(row.get("options") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f'options of {row["optimizer"]} in the table must be a JSON object, such as {{"grad_clip": 1}}.'
        )
    return found
