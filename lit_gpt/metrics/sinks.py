"""Where metrics go: metrics.jsonl always, then CSV and the trackers that the user asked for (departure D81)."""

from __future__ import annotations

import csv
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import NotWritten, UserError, did_you_mean
from lit_gpt.metrics.background import Texts
from lit_gpt.metrics.summary import METRICS_FILE, jsonable, parse_rows, read_rows
from lit_gpt.metrics.trackers import TRACKERS, RunInfo, Tracker
from lit_gpt.utils.files import replacing, sync

CSV_FILE, CORRUPT = "metrics.csv", ".corrupt"
VALIDATION = "metric/val_loss@1x"
SINK_NAMES = ("csv", *TRACKERS)


class Sinks:
    """Fan-out of scalars to every sink; build it on the main rank only.

    folder: run folder, must exist. names: any of SINK_NAMES. config: resolved options and
    Plan, handed to the trackers once. entity, group, tags: of the run in trackers that know
    these. resume_step: the optimizer step training continues from; records after it are
    removed, so that the local files read as one uninterrupted run. 0 starts the files afresh.
    owned: called before anything is written; raises where the folder is not this process's any more.

    A process can be suspended between that question and the write, and lose the folder meanwhile. Lines are therefore
    appended through a handle that was open before the question, and a new owner starts with new files (made beside the
    old ones, and renamed): what the old owner still appends goes to a file that has no name any more.

    A tracker that fails warns once and never stops training. While a local file cannot be written, its lines wait
    in memory. A warning says so each time that this begins, and again at ten times as many lines; `close` raises
    NotWritten when that is still so at the end.
    Raises UserError for an unknown name or a missing package.
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
        owned: Callable[[], None] = lambda: None,
    ):
        unknown = [n for n in names if n not in SINK_NAMES]
        if unknown:
            raise UserError(
                f"Unknown logger {unknown[0]!r}.{did_you_mean(unknown[0], SINK_NAMES)} "
                f"Type --loggers with any of: {', '.join(SINK_NAMES)}."
            )
        info = RunInfo(folder, run_name, project, jsonable(config), resume_step, entity, group, tuple(tags))
        self._owned, self._failed = owned, set[str]()
        self._trackers = self._start([n for n in TRACKERS if n in names], info)
        self._jsonl = _Jsonl(_Appended(folder / METRICS_FILE, owned), resume_step)
        self._csv = _Csv(_Appended(folder / CSV_FILE, owned), self._jsonl) if "csv" in names else None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars of one optimizer step; NaN and infinities are null in the local files."""
        self._owned()
        row = {"step": step, "time": round(time.time(), 3), **jsonable(values)}
        self._jsonl.write(row)
        if self._csv:
            self._csv.write(row)
        numbers = {k: float(v) for k, v in values.items()}
        self._tell(lambda tracker: tracker.log(numbers, step))

    def texts(self, rows: Texts, step: int) -> None:
        """Give samples of text to the trackers; the run folder has them in a file of their own."""
        self._tell(lambda tracker: tracker.texts(rows, step))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                call(tracker)
            except Exception as error:
                self._warn(name, error)

    def close(self) -> None:
        """Flush and close every sink. Raises NotWritten where lines of a local file are lost."""
        self._tell(lambda tracker: tracker.close())
        self._owned()
        problems = [file.close() for file in (self._jsonl, self._csv) if file]
        if lost := [problem for problem in problems if problem]:
            raise NotWritten(" ".join(lost))

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


class _Appended:
    """A file that grows at its end, through a handle that stays open (`Sinks` says why)."""

    def __init__(self, path: Path, owned: Callable[[], None]):
        self.path, self._owned, self._handle = path, owned, -1

    def beside(self, suffix: str) -> _Appended:
        return _Appended(self.path.with_name(self.path.name + suffix), self._owned)

    def replace(self, data: bytes) -> None:
        """The whole content, in one step and as a new file."""
        with replacing(self.path) as temporary:
            temporary.write_bytes(data)
            sync(temporary)  # a power cut must not leave an empty file where a whole one was
            self._owned()

    def append(self, data: bytes) -> None:
        """All of it, or nothing."""
        if not self._is_open():
            self.close()
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._owned()  # once more: the handle may be to another owner's file
        end, done = os.fstat(self._handle).st_size, 0
        try:
            while done < len(data):
                done += os.write(self._handle, data[done:])
        except OSError:
            os.ftruncate(self._handle, end)
            raise

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _is_open(self) -> bool:
        """Whether the handle is to the file that has the name now: a person may have moved the old one."""
        try:
            return self._handle >= 0 and os.path.samestat(os.fstat(self._handle), self.path.stat())
        except FileNotFoundError:
            return False


class _Jsonl:
    """One JSON object per line, handed to the system line by line."""

    def __init__(self, file: _Appended, resume_step: int):
        self.file, self.path, self.waiting = file, file.path, list[str]()  # waiting: lines that are not in the file yet
        before = self.path.read_bytes() if self.path.is_file() else b""
        rows, self.corrupt = parse_rows(self.path) if resume_step and before else ([], [])
        # Of the whole file. A continued run's is written anew even where nothing changes: see `Sinks`.
        self.replacement: str | None = "".join(_line(row) for row in rows if row["step"] <= resume_step)
        self._say_at = 0  # so many lines that wait
        self._try()

    def write(self, row: Mapping[str, Any]) -> None:
        self.waiting.append(_line(row))
        self._try()

    def _flush(self) -> None:
        if self.corrupt:
            aside = self.file.beside(CORRUPT)
            aside.append(b"".join(line + b"\n" for line in self.corrupt))
            aside.close()
            warnings.warn(f"{self.path} had lines that are no records; they are in {aside.path} now.", stacklevel=4)
            self.corrupt = []
        new = "".join(self.waiting)
        if self.replacement is not None:
            self.file.replace((self.replacement + new).encode())
            self.replacement = None
        else:
            self.file.append(new.encode())
        self.waiting, self._say_at = [], 0

    def _try(self) -> bool:
        try:
            self._flush()
        except OSError as error:
            if (count := len(self.waiting)) >= self._say_at:
                self._say_at = 10 * max(count, 1)
                # The step, since Python drops a text that it has shown.
                since = f", from step {json.loads(self.waiting[0])['step']} on" if count else ""
                warnings.warn(
                    f"{self.path} cannot be written ({error.strerror}){since}. Training goes on, and what is logged "
                    f"waits in memory until it can be; lines that a kill would lose now: {count}.",
                    stacklevel=4,
                )
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether the file has all lines that were logged."""
        return self.replacement is None and not self.waiting

    def close(self) -> str:
        """Try for the last time; what is lost, in words."""
        written = self.complete or self._try()
        self.file.close()
        if written or not self.waiting:
            return ""
        return (
            f"The last {len(self.waiting)} lines of {self.path} could not be written and are lost; those "
            "before them are there. Make room or permit it."
        )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class _Csv:
    """The records of metrics.jsonl as a table; made from it anew when a new key appears, and after a failed write.

    Its column val_loss, which scripts for ArchScale read, has the newest validation loss in every row from the first
    validation on, so that the last row has the last one.
    """

    def __init__(self, file: _Appended, source: _Jsonl):
        self.file, self.path, self.source = file, file.path, source
        self._newest: dict[str, Any] = {}  # {"val_loss": ...} from the first validation on
        self._columns: list[str] = []  # of the file, where it has all rows
        self._rebuild()

    def write(self, row: Mapping[str, Any]) -> None:
        """`row` is in metrics.jsonl already, so that a rebuild includes it."""
        if self._columns and row.keys() <= set(self._columns):
            try:
                self.file.append(_table(self._columns, [self._filled(row)]))
            except OSError:  # of which metrics.jsonl warns; it is on the same disk
                self._columns = []
        else:
            self._rebuild()

    def _rebuild(self) -> str:
        """Write the whole table; why it could not be written."""
        self._columns = []
        try:
            self._newest = {}
            rows = [self._filled(row) for row in read_rows(self.source.path)]
            columns = list(dict.fromkeys(["step", "time", *(key for row in rows for key in row)]))
            header = dict(zip(columns, columns))
            self.file.replace(_table(columns, [header, *rows]))
        except OSError as error:
            return str(error.strerror)
        self._columns = columns if self.source.complete else []
        return ""

    def _filled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A record, which comes after the others, with val_loss."""
        if VALIDATION in row:
            self._newest = {"val_loss": row[VALIDATION]}
        return {**row, **self._newest}

    def close(self) -> str:
        """Try for the last time; what is lost, in words."""
        why = "" if self._columns else self._rebuild()
        self.file.close()
        return f"{self.path} could not be written ({why}); metrics.jsonl has the same numbers." if why else ""


def _table(columns: list[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
