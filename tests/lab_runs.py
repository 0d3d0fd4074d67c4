"""Run folders as pretrain.py leaves them, without training: what the lab's tests read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

PLAN: dict[str, Any] = {
    "depth": 2,
    "context": 64,
    "batch_tokens": 512,
    "seed": 1,
    "data_seed": 1,
    "tokens": 2048,
    "model_flops_per_token": 1000.0,
    "counts": {"non_embedding": 100, "total": 160, "active": 150},
    "roles": {"matrix": {"lr": 0.01, "weight_decay": 0.1}},
}
SUMMARY: dict[str, Any] = {
    "finished": True,
    "step": 4,
    "tokens": 2048,
    "train_loss": 2.1,
    "metric/val_loss@1x": 2.0,
    "metric/val_bpb@1x": 1.0,
    "throughput/tokens_per_sec": 50.0,
    "time/train": 40.0,
}


def make_run(
    folder: Path,
    *,
    row: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = SUMMARY,
    metrics: list[dict[str, Any]] | None = None,
    sources: dict[str, int] | None = None,
    **options: Any,
) -> Path:
    """sources: name -> tokens of the training data. options: of config.yaml. row: of a study, beside the folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"depth": 2, "optimizer": "adamw", **options}))
    (folder / "plan.json").write_text(json.dumps({**PLAN, **(plan or {})}))
    (folder / "model.json").write_text(json.dumps({"n_embd": 32}))
    data = {"train": {"sources": {name: {"tokens": tokens} for name, tokens in (sources or {}).items()}}}
    (folder / "environment.json").write_text(json.dumps({"data": data}))
    lines = metrics if metrics is not None else [{"step": 4, "total_tokens": 2048, "metric/train_loss": 2.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if row is not None:
        (folder.parent / "row.json").write_text(json.dumps(row))
    return folder
