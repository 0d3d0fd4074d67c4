"""Rows of a study on this machine: several per GPU, one per GPU, or several GPUs per run.

A run that is cut goes on (--resume auto), one that fails is tried again, one that diverges is stopped. SIGTERM and
Ctrl-C are passed on to all runs, which save and end; a second one kills them. A run whose ladder was killed goes on,
and is recognised by the next ladder, which waits for it in the place that it would have given to it.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_gpt.errors import EXIT_BAD_INPUT, EXIT_NOT_FINITE, EXIT_NOT_OWNER
from lit_gpt.lab.display import Display
from lit_gpt.lab.processes import Children, Place, Settings, command, describe, end, environment
from lit_gpt.lab.queue import ENDED, FAILED, LATE, Queue, done_before, running_below
from lit_gpt.lab.rows import Row, unmark_folder
from lit_gpt.lab.run_files import DIVERGED, FINISHED
from lit_gpt.lab.watch import Watch, diverged, note_divergence
from lit_gpt.train.lease import STALE_AFTER, Lease
from lit_gpt.utils.files import told, write_text

LOG, COMMAND = "log.txt", "command.txt"
# Ours, and the end of a traceback, which torch gives the rank in front; not that of torchrun, which is last.
ERROR = re.compile(
    rb"^(?:(?:\[rank\d+\]|rank \d+): )?"
    rb"(?:error: .*|(?!torch\.distributed\.elastic)[\w.]*(?:Error|Exception)(?:: .*)?)$",
    re.MULTILINE,
)
SHOWN = 400  # characters of an error: a sentence that names a path or two
LOOK_EVERY = 5.0  # seconds between looks at a run's metrics
FROM_TRAINED = ("--fork_from", "--init_from", "--load_dir")
GRACE = 120.0  # seconds that a run gets to save before it is killed


class Turn:
    """Whose turn it is in a place: a run starts when the others there need less time for the rest of their steps than
    the last start of a run took until it was seen to train.

    Its imports and its compilation take their time beside the end of the last run. Speeds are not those of the steps
    that two runs share (metrics/throughput.py).
    """

    def __init__(self) -> None:
        self._start = 0.0  # seconds that the last start took
        self._launched: dict[Worker, float] = {}  # by the clock, as the two that follow
        self._seen: dict[Worker, tuple[float, float]] = {}  # when it was first seen to train, and the part left then
        self._ends: dict[Worker, float] = {}  # of its steps; never, where nothing is known yet
        self._changed = threading.Condition()

    def take(self, worker: Worker, stopping: threading.Event) -> None:
        """Wait until this worker may take a run, or everything is to stop."""
        self.end(worker)
        with self._changed:
            while self._soonest() > time.monotonic() and not stopping.is_set():
                self._changed.wait(0.5)
            self._launched[worker], self._ends[worker] = time.monotonic(), math.inf

    def _soonest(self) -> float:
        return max(self._ends.values(), default=-math.inf) - self._start

    def note(self, worker: Worker, left: float) -> None:
        """Its run has this part of its tokens left."""
        with self._changed:
            now = time.monotonic()
            if left >= 1:  # it has not trained yet, or it failed and begins anew
                if self._seen.pop(worker, None):
                    self._launched[worker], self._ends[worker] = now, math.inf
                return
            if worker not in self._seen:
                self._seen[worker], self._start = (now, left), now - self._launched[worker]
            since, then = self._seen[worker]
            since, then = (since, then) if left < then else (self._launched[worker], 1.0)
            self._ends[worker] = now + left / (then - left) * (now - since)
            self._changed.notify_all()

    def end(self, worker: Worker) -> None:
        """Its run is over, and it takes no other now."""
        with self._changed:
            for known in (self._launched, self._seen, self._ends):
                known.pop(worker, None)
            self._changed.notify_all()


class Worker:
    """Runs rows of a queue in one place, one after the other. turn: shared by all workers of the place."""

    def __init__(
        self, queue: Queue, children: Children, settings: Settings, place: Place, display: Display, turn: Turn
    ) -> None:
        self.queue, self.children, self.settings, self.place = queue, children, settings, place
        self.display, self.turn = display, turn

    def run(self) -> None:
        """Until nothing is left for it. Where it fails itself, such as on a full disk, all workers stop."""
        try:
            while (taken := self._next()) is not None:
                self._taken(*taken)
        except BaseException:
            self.queue.stopping.set()
            raise
        finally:
            self.turn.end(self)

    def _next(self) -> tuple[Row, Lease] | None:
        self.turn.take(self, self.queue.stopping)
        return self.queue.take()

    def _taken(self, row: Row, lease: Lease) -> None:
        try:
            state = self._row(row)
        finally:
            lease.close()
        cut = self.children.stopping.is_set() and state not in (FINISHED, DIVERGED)
        if state and not cut:
            self.queue.say(row, ": ".join(filter(None, [state, diverged(self.queue.folder(row))])))
        self.queue.settle(row, "" if cut else state)

    def _row(self, row: Row) -> str:
        """Start a row until it is done or given up; what became of it."""
        folder, end_at, tries = self.queue.folder(row), time.monotonic() + 60 * self.settings.minutes, 0
        while not self.children.stopping.is_set():
            if not self._left_alone(row, folder):
                return ""
            if state := done_before(folder):
                return state
            code, why = self._process(row, folder, end_at)
            if code == EXIT_NOT_OWNER and running_below(folder):
                continue  # a run of a ladder that was killed had only just started
            tries += 1
            state = self._judged(row, folder, code, why)
            if self.children.stopping.is_set() and state == FAILED:
                return ""
            if code == EXIT_BAD_INPUT:
                unmark_folder(row, self.queue.output)
            if state != FAILED or code == EXIT_BAD_INPUT or tries >= self.settings.tries:
                return state
            self.queue.say(row, f"is tried again, {tries + 1} of {self.settings.tries}")
        return ""

    def _left_alone(self, row: Row, folder: Path) -> bool:
        """Wait for a run without its ladder until it ends, or its host is gone; False where we are to stop."""
        owner, since = running_below(folder), time.monotonic()
        if owner:
            self.queue.say(row, f"goes on without its ladder, {owner}; waiting for it")
        while owner and time.monotonic() - since <= STALE_AFTER and not self.children.stopping.wait(1.0):
            before, owner = owner, running_below(folder)  # the words change with each renewal
            since = since if owner == before else time.monotonic()
        return not self.children.stopping.is_set()

    def _process(self, row: Row, folder: Path, end_at: float) -> tuple[int, str]:
        """Its exit code, and why it was stopped: DIVERGED, LATE or ""."""
        log = None if self.place is None else folder / LOG
        words = command(row, self.settings, self.queue.output, self.place)
        with told(folder / COMMAND):
            write_text(folder / COMMAND, shlex.join(words) + "\n")
        where = None if self.place is None else f"starts on {describe(self.place)}, output in {log}"
        self.queue.say(row, where or shlex.join(words))
        trained = any(word.partition("=")[0] in FROM_TRAINED for word in words)
        watch, why, stopped_at, next_look = Watch(folder, self.display.budget(row), trained), "", 0.0, 0.0
        before = log.stat().st_size if log and log.exists() else 0
        with self.children.started(words, environment(self.place, len(self.settings.devices)), log) as process:
            while (code := waited(process, 0.5)) is None:
                now = time.monotonic()
                if why and now > stopped_at + GRACE:
                    end(process, signal.SIGKILL)
                if not why and now > next_look:
                    next_look, why = now + LOOK_EVERY, self._looked(row, watch, now > end_at)
                    if why:
                        stopped_at = now
                        end(process, signal.SIGTERM)
        self._looked(row, watch, False)
        if code:
            reason = why or (last_error(log, before) if log else "")
            self.queue.say(row, f"ended with exit code {code}" + (f": {reason}" if reason else ""))
        return code, why

    def _looked(self, row: Row, watch: Watch, late: bool) -> str:
        """Look at a run: DIVERGED or LATE where it is to be stopped, else ""."""
        found = watch.look()
        self.display.note(row, watch.tokens)
        if watch.budget:  # both count the tokens before a fork, too
            self.turn.note(self, (watch.budget - watch.tokens) / (watch.budget - row.start))
        if found and self.settings.watch:
            note_divergence(watch.folder, found, watch)
            return DIVERGED
        return LATE if late else ""

    def _judged(self, row: Row, folder: Path, code: int, why: str) -> str:
        """What an exit code means for a row."""
        if code == EXIT_NOT_FINITE and not why and self.settings.watch:
            watch = Watch(folder, 0)
            watch.look()
            note_divergence(folder, "its gradients are no numbers", watch)
            why = DIVERGED
        state = why or (FINISHED if code == 0 and done_before(folder) else ENDED if code == 0 else FAILED)
        if code == os.EX_TEMPFAIL and not why:  # interrupted by somebody else, who wants the machine
            self.children.stopping.set()
        return state


def last_error(log: Path, start: int) -> str:
    """The first line of the last error that a log holds from byte `start` on, or ""."""
    found = ERROR.findall(log.read_bytes()[start:])
    line = found[-1].decode(errors="replace").strip() if found else ""
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."


def waited(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a process that ends within so many seconds, else None."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def run_rows(queue: Queue, settings: Settings, display: Display, worker: type[Worker] = Worker) -> bool:
    """Run what is not finished in all places; whether it was interrupted."""
    children = Children(queue.stopping)
    places = [(place, Turn()) for place in settings.devices] * (2 if settings.overlap else 1)
    workers = [worker(queue, children, settings, place, display, turn) for place, turn in places]
    with children.listening(), ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(one.run) for one in workers]
        for future in futures:
            future.result()
    return children.stopping.is_set()
