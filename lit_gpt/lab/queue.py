"""Which row of a study runs next, so that none runs twice: on this machine, or on others that share the folder.

A row is claimed by a lease in its folder (lit_gpt/train/lease.py: a file that the file system gives to one process
alone, renewed every few seconds, and taken over when its owner is gone). Rows that another ladder has claimed are
looked at again later. Below it the run has a lease of its own, so a run that goes on although its ladder was killed
is seen, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_gpt.errors import NotOwner
from lit_gpt.lab.rows import Row, mark_folders, summary
from lit_gpt.lab.run_files import DIVERGED, FINISHED
from lit_gpt.lab.watch import diverged
from lit_gpt.train.lease import STALE_AFTER, Lease, owner_of, take_lease

FAILED, LATE, ENDED = "failed", "out of time", "ended early"
GIVEN_UP = (FAILED, LATE)
LOOK_EVERY = 2.0  # seconds between looks at what another ladder has claimed
Say = Callable[[Row, str], None]


class Queue:
    """The rows that are not done, for several workers.

    say: prints a sentence about a row. grow: from the states so far to more rows. stopping: when it is set, no worker
    gets another row.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        output: Path,
        say: Say,
        grow: Callable[[Mapping[str, str]], Sequence[Row]] | None = None,
    ) -> None:
        self.rows, self.output, self.say, self.grow = list(rows), output, say, grow
        self.states: dict[str, str] = {}
        self.stopping = threading.Event()
        self._waiting, self._busy = list(rows), set[str]()
        self._changed = threading.Condition()
        self._seen: dict[str, tuple[str, float, float]] = {}  # row -> owner in words, since when, next look
        mark_folders(rows, output)
        # Rows whose run goes on without its ladder come first, since they use a device already.
        self._waiting.sort(key=lambda row: not running_below(self.folder(row)))

    def folder(self, row: Row) -> Path:
        """Where a row lives."""
        return self.output / row.name

    def take(self) -> tuple[Row, Lease] | None:
        """The next row, and the claim to it, which the caller closes; None when nothing is left or it is stopping.

        Waits while rows depend on others that run, and while other ladders run what is left.
        """
        while not self.stopping.is_set():
            with self._changed:
                row = next((row for row in self._waiting if self._may_start(row)), None)
                if row is None:
                    if not self._waiting and not self._busy:
                        return None
                    self._changed.wait(LOOK_EVERY / 4)
                    continue
                self._waiting.remove(row)
                self._busy.add(row.name)
            if (lease := self._claimed(row)) is not None:
                return row, lease
        return None

    def settle(self, row: Row, state: str) -> None:
        """Note what became of a row; states are FINISHED and its neighbours, or "" for one that was interrupted."""
        with self._changed:
            self._busy.discard(row.name)
            if state:
                self.states[row.name] = state
                self._add()
            self._changed.notify_all()

    def _add(self) -> None:
        for row in self.grow(self.states) if self.grow else ():
            if row.name not in {known.name for known in self.rows}:
                mark_folders([row], self.output)
                self.rows.append(row)
                self._waiting.append(row)

    def _may_start(self, row: Row) -> bool:
        """Whether a worker may try it now; a row whose trunk was given up is settled."""
        if row.after is not None and self.states.get(row.after) != FINISHED:
            if row.after in self.states:
                self._waiting.remove(row)
                self.states[row.name] = FAILED
                self.say(row, f"not run, since {row.after} {self.states[row.after]}")
            return False
        return time.monotonic() >= self._seen.get(row.name, ("", 0.0, 0.0))[2]

    def _claimed(self, row: Row) -> Lease | None:
        """The claim, or None: it is done, or another ladder's for now."""
        if state := done_before(self.folder(row)):
            self.say(row, f"{state} before")
            self.settle(row, state)
            return None
        owner, now = owner_of(self.folder(row)), time.monotonic()
        before, since, _ = self._seen.get(row.name, ("", now, now))
        if owner and not (owner == before and now - since > STALE_AFTER):
            if not before:
                self.say(row, f"another ladder runs it, {owner}")
            return self._later(row, owner, since if owner == before else now)
        try:
            lease = take_lease(self.folder(row))
        except NotOwner:
            return self._later(row, owner, now)
        if done_before(self.folder(row)):  # by the ladder that had it a moment ago
            lease.close()
            return self._claimed(row)
        return lease

    def _later(self, row: Row, owner: str, since: float) -> None:
        with self._changed:
            self._seen[row.name] = owner, since, time.monotonic() + LOOK_EVERY
            self._busy.discard(row.name)
            self._waiting.append(row)


def done_before(folder: Path) -> str:
    """FINISHED or DIVERGED of a row that needs no run any more, else ""."""
    if summary(folder).get("finished"):
        return FINISHED
    return DIVERGED if diverged(folder) else ""


def running_below(folder: Path) -> str:
    """Who trains in a run folder below a row's folder, in words; "" where nobody does."""
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return next(filter(None, map(owner_of, runs)), "")
