"""Experiment trackers in threads of their own: no server, slow or gone, holds up a start, a step or an end."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

ROOM = 10_000  # records that may wait to be sent, some MB: those of a day with one every ten seconds
PATIENCE = 30.0  # seconds that the end of a run waits for what is still to be sent
THREAD = "tracker "  # how the names of the threads begin


Texts = Sequence[tuple[str, str]]  # prompts, and how the model went on


class Tracker(Protocol):
    """What a run logs numbers and samples of text to: wandb, mlflow or TensorBoard."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def texts(self, rows: Texts, step: int) -> None: ...
    def close(self) -> None: ...


class Background:
    """A tracker that connects, logs and closes in a thread; whatever it raises there is a warning.

    connect: makes the tracker. A record that finds no room is dropped, and counted.
    """

    def __init__(self, name: str, connect: Callable[[], Tracker]):
        self.name, self.lost = name, 0
        self._queue: queue.Queue[tuple[str, Any, int] | None] = queue.Queue(ROOM)
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._run, args=(connect,), name=THREAD + name, daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Put a record into the queue; returns at once, and drops the record where the queue is full."""
        self._put("log", values, step)

    def texts(self, rows: Texts, step: int) -> None:
        """The same for samples of text."""
        self._put("texts", rows, step)

    def _put(self, kind: str, record: Any, step: int) -> None:
        try:
            self._queue.put_nowait((kind, record, step))
        except queue.Full:
            self.lost += 1
            self._warn("is too slow", f"{ROOM} records wait, and further ones are dropped")

    def close(self) -> None:
        """Wait for what is still to be sent, but not longer than PATIENCE; say what was not."""
        end = time.monotonic() + PATIENCE
        with suppress(queue.Full):
            self._queue.put(None, timeout=PATIENCE)
            self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._warn("did not end", f"about {self._queue.qsize()} records wait after {PATIENCE:g} seconds; dropped")
        if self.lost:
            self._warn("has not everything", f"{self.lost} records did not reach it")

    def _run(self, connect: Callable[[], Tracker]) -> None:
        trackers: list[Tracker] = []
        self._succeeds(lambda: trackers.append(connect()))
        while (record := self._queue.get()) is not None:
            kind, *arguments = record
            if not trackers or not self._succeeds(getattr(trackers[0], kind), *arguments):
                self.lost += 1
        for tracker in trackers:
            self._succeeds(tracker.close)

    def _succeeds(self, call: Callable[..., object], *args: object) -> bool:
        try:
            call(*args)
        except BaseException as error:  # SystemExit too, which some libraries raise
            self._warn("failed", repr(error))
            return False
        return True

    def _warn(self, what: str, why: str) -> None:
        """Warn, once for each kind of problem."""
        if what not in self._warned:
            self._warned.add(what)
            text = f"The {self.name} logger {what} ({why}). The run does not need it; metrics.jsonl is complete."
            warnings.warn(text, stacklevel=3)


def hanging() -> bool:
    """Whether a tracker's library still waits for its server: its own exit hooks would, too."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())
