"""The files a run leaves behind: summary.json, and reading metrics.jsonl back."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.utils.files import near, told, write_text

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
    """Write `values` to summary.json in the run folder, atomically; returns its path.

    Raises NotWritten where that cannot be.
    """
    path = folder / SUMMARY_FILE
    with told(path):
        write_text(path, json.dumps(jsonable(values), indent=2, sort_keys=True, allow_nan=False) + "\n")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl in order. Warns of lines that are none; one cut short by a crash is left out."""
    rows, corrupt = parse_rows(path)
    if corrupt:
        warnings.warn(f"{path}: lines that are no records are left out; the first is {corrupt[0][:80]!r}", stacklevel=2)
    return rows


def parse_rows(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Records in order, and the lines that are none; see parse_lines."""
    return parse_lines(path.read_bytes())


def parse_lines(text: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Records in order, and the lines that are none: each must be a JSON object with a step.

    A last line without its end is neither: a crash cut it short.
    """
    lines = text.split(b"\n")
    rows: list[dict[str, Any]] = []
    corrupt: list[bytes] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_record(line))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            if line and number < len(lines):
                corrupt.append(line)
    return rows, corrupt


def _record(line: bytes) -> dict[str, Any]:
    """The record of a line: a step, and numbers or null by name. Raises one of several exceptions where it is none."""
    row = json.loads(line)
    for name, value in row.items():
        name.encode()  # lone surrogates go into no file
        if value is not None and not isinstance(0.0 + value, float):  # raises for text, and for numbers beyond floats
            raise TypeError(f"{name} is no number")
    finite = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
    return {**finite, "step": int(row["step"])}  # Python's json reads NaN, which JSON has not


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The curves of a run as float64 arrays of one common length, one entry per logged step.

    `path` is a run folder or its metrics.jsonl. Lines of the same step are merged; a key
    that a step did not log (or logged as NaN) is NaN there. Raises UserError when there
    is no such file or nothing in it.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"No metrics at {file}.{near(path, METRICS_FILE)} Give the folder of a run, which holds {METRICS_FILE}."
        )
    merged: dict[int, dict[str, Any]] = {}
    for row in read_rows(file):
        merged.setdefault(row["step"], {}).update(row)
    if not merged:
        raise UserError(f"{file} has no records yet. Wait for the first log line, or give another run.")
    rows = [merged[step] for step in sorted(merged)]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: np.array([row.get(key) for row in rows], dtype=np.float64) for key in keys}
