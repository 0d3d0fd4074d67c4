"""Joins the units' tokens, in order, into shards, and remembers how far it came."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from lit_gpt.data.formats import packed
from lit_gpt.data.meta import write_json
from lit_gpt.data.prepare.worker import Job, read_counts
from lit_gpt.errors import UserError


@dataclass
class _Progress:
    """How far one split is published: `shards` shards, up to token `offset` of unit `unit`."""

    shards: int = 0
    unit: int = 0
    offset: int = 0


@dataclass
class _Queue:
    """Tokens of finished units that wait for a shard: (unit, first token, tokens)."""

    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)
    tokens: int = 0


class Publisher:
    """Writes <prefix>_<counter>.bin as soon as the next shard_tokens tokens, in unit order, are there.

    A shard appears under its name only when complete, then the journal moves on, then what went
    into it is deleted: killed anywhere in between, the next run writes the same bytes again.
    """

    def __init__(self, job: Job, output: Path, shard_tokens: int, identity: str):
        self.job, self.output, self.shard_tokens, self.identity = job, output, shard_tokens, identity
        self.journal = job.parts / "journal.json"
        self.progress: dict[str, _Progress] = {}
        if self.journal.exists():
            saved = json.loads(self.journal.read_text())["published"]
            self.progress = {split: _Progress(**p) for split, p in saved.items()}
        self._save()
        self.queues: dict[str, _Queue] = {}
        self.finished: set[int] = set()
        self.next_unit = 0

    def add(self, unit: int) -> None:
        """A unit, in any order, is finished."""
        self.finished.add(unit)
        while self.next_unit in self.finished:
            self._enqueue(self.next_unit)
            self.next_unit += 1

    def close(self) -> dict[str, int]:
        """Write what is left as the last, smaller shard of each split. Returns {split: shards}."""
        for split, queue in self.queues.items():
            if queue.tokens:
                self._publish(split, queue.tokens)
        return {split: progress.shards for split, progress in self.progress.items()}

    def _enqueue(self, unit: int) -> None:
        for split, counts in read_counts(self.job, unit)[0].items():
            progress = self.progress.setdefault(split, _Progress())
            queue = self.queues.setdefault(split, _Queue())
            if unit >= progress.unit:
                skip = progress.offset if unit == progress.unit else 0
                queue.waiting.append((unit, skip, counts["tokens"] - skip))
                queue.tokens += counts["tokens"] - skip
            while queue.tokens >= self.shard_tokens:
                self._publish(split, self.shard_tokens)

    def _publish(self, split: str, count: int) -> None:
        progress, dtype = self.progress[split], np.dtype(self.job.dtype)
        path = self.output / packed.shard_name(split, progress.shards)
        temporary = path.with_name(f".{path.name}.tmp")
        used = self._dequeue(split, count)
        with open(temporary, "wb") as f:
            f.write(packed.header(dtype, count))
            for unit, first, n in used:
                part = self.job.part(unit, split)
                _copy(part, first * dtype.itemsize, n * dtype.itemsize, f)
        os.replace(temporary, path)
        last, first, n = used[-1]
        self.progress[split] = _Progress(progress.shards + 1, last, first + n)
        self._save()
        for unit, _, _ in used[:-1]:
            self.job.part(unit, split).unlink()

    def _dequeue(self, split: str, count: int) -> list[tuple[int, int, int]]:
        queue, used = self.queues[split], []
        queue.tokens -= count
        while count:
            unit, first, n = queue.waiting.popleft()
            taken = min(n, count)
            used.append((unit, first, taken))
            if taken < n:
                queue.waiting.appendleft((unit, first + taken, n - taken))
            count -= taken
        return used

    def _save(self) -> None:
        published = {split: asdict(p) for split, p in self.progress.items()}
        write_json(self.journal, {"identity": self.identity, "published": published})


def _copy(path: Path, start: int, count: int, to: IO[bytes]) -> None:
    """Append `count` bytes of a file, from `start` on, through a small buffer. Raises UserError where it has fewer."""
    with open(path, "rb") as f:
        f.seek(start)
        while count:
            if not (piece := f.read(min(count, 1 << 20))):
                raise UserError(f"{path} is shorter than it was. Remove {path.parent}, and prepare again.")
            count -= to.write(piece)
