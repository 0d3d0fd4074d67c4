"""Runs whose losses are kept in tests/e2e/golden: fifty steps, each of two micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import rows, run

RUNS: dict[str, dict[str, Any]] = {"adamw_transformer": {"optimizer": "adamw"}}
COMMON: dict[str, Any] = {"depth": 4, "max_tokens": 50 * 512, "micro_bsz": 4, "precision": "fp32"}


def losses(name: str, data: Path, out: Path) -> list[float]:
    """Training loss of every step."""
    assert run(data, out, **COMMON, **RUNS[name]) == 0
    return list(rows(out).values())


def file_of(name: str) -> Path:
    """Where they are kept, as a JSON list."""
    return Path(__file__).parent / "golden" / f"{name}.json"
