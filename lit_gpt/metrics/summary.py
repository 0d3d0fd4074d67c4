"""The files a run leaves behind: summary.json, and reading metrics.jsonl back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.utils.files import write_text

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"


def jsonable(value: Any) -> Any:
    """The same value in strict JSON types: NaN and infinities become None, unknown types strings."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def write_summary(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write `values` to summary.json in the run folder, atomically; returns its path."""
    path = folder / SUMMARY_FILE
    write_text(path, json.dumps(jsonable(values), indent=2, sort_keys=True, allow_nan=False) + "\n")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; a last line cut short by a crash is left out.

    Raises UserError for a broken line anywhere else.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError) as broken:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number} is not a metrics record: {line[:80]!r}. Every line must be a JSON "
                f"object with a 'step'. Remove that line and try again."
            ) from broken
    return rows


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The curves of a run as float64 arrays of one common length, one entry per logged step.

    `path` is a run folder or its metrics.jsonl. Lines of the same step are merged; a key
    that a step did not log (or logged as NaN) is NaN there. Raises UserError when there
    is no such file or nothing in it.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"No metrics at {file}. Give the folder of a run, which holds {METRICS_FILE}.")
    merged: dict[int, dict[str, Any]] = {}
    for row in read_rows(file):
        merged.setdefault(row["step"], {}).update(row)
    if not merged:
        raise UserError(f"{file} has no records yet. Wait for the first log line, or give another run.")
    rows = [merged[step] for step in sorted(merged)]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: np.array([row.get(key) for row in rows], dtype=np.float64) for key in keys}
