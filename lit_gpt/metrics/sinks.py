"""Where metrics go: metrics.jsonl always, then CSV and the trackers the user asked for."""

from __future__ import annotations

import csv
import io
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.metrics.remote import TRACKERS, RunInfo, Tracker
from lit_gpt.metrics.summary import METRICS_FILE, jsonable, read_rows
from lit_gpt.utils.files import write_text

CSV_FILE = "metrics.csv"
SINK_NAMES = ("csv", *TRACKERS)


class Sinks:
    """Fan-out of scalars to every sink; build it on the main rank only.

    folder: run folder, must exist. names: any of SINK_NAMES. config: resolved options and
    Plan, handed to the trackers once. entity, group, tags: of the run in trackers that know
    these. resume_step: the optimizer step training continues from; records after it are
    removed, so that the local files read as one uninterrupted run. 0 starts the files afresh.

    A tracker that fails warns once and never stops training; a local file that cannot
    be written is an error. Raises UserError for an unknown name or a missing package.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        run_name: str,
        project: str,
        config: Mapping[str, Any],
        resume_step: int,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ):
        unknown = [n for n in names if n not in SINK_NAMES]
        if unknown:
            raise UserError(
                f"Unknown logger {unknown[0]!r}.{did_you_mean(unknown[0], SINK_NAMES)} "
                f"Type --loggers with any of: {', '.join(SINK_NAMES)}."
            )
        info = RunInfo(folder, run_name, project, jsonable(config), resume_step, entity, group, tuple(tags))
        self._failed: set[str] = set()
        self._trackers = self._start([n for n in TRACKERS if n in names], info)
        self._jsonl = _Jsonl(folder / METRICS_FILE, resume_step)
        self._csv = _Csv(folder / CSV_FILE, folder / METRICS_FILE) if "csv" in names else None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars of one optimizer step; NaN and infinities are null in the local files."""
        row = {"step": step, "time": round(time.time(), 3), **jsonable(values)}
        self._jsonl.write(row)
        if self._csv:
            self._csv.write(row)
        for name, tracker in self._trackers.items():
            try:
                tracker.log({k: float(v) for k, v in values.items()}, step)
            except Exception as error:
                self._warn(name, error)

    def close(self) -> None:
        """Flush and close every sink."""
        self._jsonl.close()
        if self._csv:
            self._csv.close()
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                self._warn(name, error)

    def _start(self, names: Sequence[str], info: RunInfo) -> dict[str, Tracker]:
        trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                trackers[name] = TRACKERS[name](info)
            except UserError:
                raise
            except Exception as error:
                self._warn(name, error)
        return trackers

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            warnings.warn(
                f"The {name} logger failed ({error!r}); training goes on, {METRICS_FILE} is complete.",
                stacklevel=3,
            )


class _Jsonl:
    """One JSON object per line, flushed line by line."""

    def __init__(self, path: Path, resume_step: int):
        kept = read_rows(path) if resume_step and path.exists() else []
        write_text(path, "".join(_line(row) for row in kept if row["step"] <= resume_step))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class _Csv:
    """The records of metrics.jsonl as a table; rebuilt from it when a new key appears."""

    def __init__(self, path: Path, source: Path):
        self._path, self._source = path, source
        self._open()

    def _open(self) -> None:
        rows = read_rows(self._source)
        self._columns = list(dict.fromkeys(["step", "time", *(key for row in rows for key in row)]))
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self._path, text.getvalue())
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._file, self._columns, lineterminator="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """`row` is in metrics.jsonl already, so a rebuild includes it."""
        if row.keys() <= set(self._columns):
            self._table.writerow(row)
            self._file.flush()
        else:
            self._file.close()
            self._open()

    def close(self) -> None:
        self._file.close()
