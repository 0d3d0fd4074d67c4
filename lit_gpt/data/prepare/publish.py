"""Fills the shards, unit after unit, and remembers how far it came."""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, Any

import numpy as np

from lit_gpt.data.formats import packed
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.meta import write_json
from lit_gpt.data.prepare.worker import Job
from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object, read_object_if_any, reserve

COPIED = 1 << 19  # tokens of a part that are copied at once
# Seconds of work, and a unit, that are lost at most when the process is killed. A unit of bytes takes a hundredth of a
# second, and an entry in the journal after each, for which the writing stops, took a tenth of the time.
EVERY = 1.0


class Publisher:
    """Writes <split>_<counter>.bin with shard_tokens tokens each; the last shard of a split has what is left.

    Shards grow in the folder of the parts. Every second, and at the end, the journal says how many units are in them,
    and then those that are full get their names in the output. Killed anywhere in between, the next run cuts off what
    the journal does not know and writes the same bytes again.

    thread: of one worker, which writes while the next texts are encoded; at its shutdown nothing is left to write.
    units: so many are in the shards. counts: split -> their {"tokens", "bytes", "documents"}. left: what they left out.
    """

    def __init__(self, job: Job, output: Path, shard_tokens: int, identity: str, thread: Executor):
        self.job, self.output, self.shard_tokens, self.identity = job, output, shard_tokens, identity
        self.thread = thread
        self.journal = job.parts / "journal.json"
        saved = read_object_if_any(self.journal)
        self.units: int = saved.get("units", 0)
        self.counts: dict[str, dict[str, int]] = saved.get("splits", {})
        self.left = LeftOut()
        self.left.merge(saved.get("left_out", {}))
        self.shards = {split: self._shards(split) for split in self.counts}
        self.finished: set[int] = set()
        self._save()

    def of_split(self, split: str) -> Shards:
        """Where the tokens of the next unit go, for encode_unit; then comes `commit`."""
        if split not in self.shards:
            self.shards[split] = self._shards(split)
        return self.shards[split]

    def commit(self, encoded: dict[str, Any]) -> None:
        """All of the next unit is in the shards. encoded: what encode_unit returned."""
        self._count(encoded)
        if time.monotonic() - self.saved >= EVERY:
            self._save()

    def _count(self, encoded: dict[str, Any]) -> None:
        self.units += 1
        self.left.merge(encoded["left_out"])
        for split, counts in encoded["splits"].items():
            sums = self.counts.setdefault(split, dict.fromkeys(counts, 0))
            self.counts[split] = {name: sums[name] + counts[name] for name in counts}

    def add(self, unit: int) -> None:
        """The parts of a unit, in any order, are finished."""
        self.finished.add(unit)
        while self.units in self.finished:
            self._take(self.units)

    def close(self) -> dict[str, int]:
        """Give the last shard of each split its name. Returns {split: shards}."""
        self._save()
        return {split: shards.close() for split, shards in self.shards.items()}

    def _shards(self, split: str) -> Shards:
        written = self.counts.get(split, {}).get("tokens", 0)
        dtype = np.dtype(self.job.dtype)
        return Shards(split, self.job.parts, self.output, dtype, self.shard_tokens, written, self.thread)

    def _take(self, unit: int) -> None:
        encoded = read_object(self.job.done(unit))
        parts = {split: self.job.part(unit, split) for split in encoded["splits"]}
        for split, part in parts.items():
            copy(part, encoded["splits"][split]["tokens"], self.of_split(split))
        self._count(encoded)
        self._save()  # before the parts go
        for path in (*parts.values(), self.job.done(unit)):
            path.unlink()

    def _save(self) -> None:
        for shards in self.shards.values():
            shards.flush()
        known = {"units": self.units, "splits": self.counts, "left_out": self.left.counts}
        write_json(self.journal, {"identity": self.identity, **known})
        for shards in self.shards.values():
            shards.publish()
        self.saved = time.monotonic()


class Shards:
    """The shards of one split, filled one after the other by a thread. written: tokens that are in them so far."""

    def __init__(
        self, split: str, parts: Path, output: Path, dtype: np.dtype, size: int, written: int, thread: Executor
    ):
        self.split, self.parts, self.output, self.dtype, self.size = split, parts, output, dtype, size
        self.written, self.thread = written, thread
        self.published = 0
        self.file: IO[bytes] | None = None
        self.writing: Future[None] | None = None

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens, when those of the call before are written."""
        self._wait()
        self.writing = self.thread.submit(self._append, tokens)

    def flush(self) -> None:
        """All is the operating system's now: killing this process does not lose it."""
        self._wait()
        if self.file:
            self.file.flush()

    def _wait(self) -> None:
        if self.writing:
            self.writing.result()

    def _append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            piece = tokens[: self.size - self.written % self.size]
            file = self._opened()
            reserve(file, piece.nbytes)
            file.write(piece.data)
            self.written += len(piece)
            tokens = tokens[len(piece) :]
            if self.file and self.written % self.size == 0:
                self.file.close()
                self.file = None

    def publish(self) -> None:
        """Give the full shards their names in the output. Those that are not in the parts have got them before."""
        full = self.written // self.size
        for counter in range(self.published, full):
            if (self.parts / self._name(counter)).exists():
                os.replace(self.parts / self._name(counter), self.output / self._name(counter))
        self.published = full

    def close(self) -> int:
        """Give the last shard its name, and the number of its tokens. Returns how many shards there are."""
        full, rest = divmod(self.written, self.size)
        name = self._name(full)
        if rest and not (self.output / name).exists():
            file = self._opened()
            file.seek(0)
            file.write(packed.header(self.dtype, rest))
            file.close()
            os.replace(self.parts / name, self.output / name)
        return full + (rest > 0)

    def _name(self, counter: int) -> str:
        return packed.shard_name(self.split, counter)

    def _opened(self) -> IO[bytes]:
        """The shard that is being filled, at its end."""
        if self.file is None:
            full, place = divmod(self.written, self.size)
            path = self.parts / self._name(full)
            self.file = open(path, "r+b" if place else "wb")  # noqa: SIM115 (open until it is full)
            if place:
                cut(self.file, path, packed.HEADER.size + place * self.dtype.itemsize)
            else:
                self.file.write(packed.header(self.dtype, self.size))
        return self.file


def cut(file: IO[bytes], path: Path, size: int) -> None:
    """Remove what a killed run wrote after the journal, and go to the end. Raises UserError where there is less."""
    if file.seek(0, os.SEEK_END) < size:
        raise shorter(path)
    file.truncate(size)
    file.seek(size)


def copy(part: Path, count: int, to: Shards) -> None:
    """Append `count` tokens of a file, through a small buffer. Raises UserError where it has fewer."""
    with open(part, "rb") as file:
        while count:
            tokens = np.fromfile(file, to.dtype, min(count, COPIED))
            if not len(tokens):
                raise shorter(part)
            to.write(tokens)
            count -= len(tokens)


def shorter(path: Path) -> UserError:
    """A file of the parts that somebody changed, or that a power cut shortened."""
    return UserError(f"{path} is shorter than it was. Remove {path.parent.parent}, and prepare again.")
