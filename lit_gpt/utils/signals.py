"""Signals that end a run, from the first line of pretrain.py to its last (departure D76).

This file imports no torch, which takes seconds in which a signal may come.

| where the run is | TERM, INT (Ctrl-C), USR1, HUP |
|---|---|
| before its loop | the process ends at once, with 128 + the signal's number (143 for TERM): nothing was trained |
| in its first step | the step may end; one that takes longer (it compiles) ends like that after GRACE seconds |
| in its loop | `asked`: the loop finishes the step, saves, and leaves |

A second Ctrl-C ends a run at once, and says what that abandons. A process of torchrun whose torchrun is gone is asked
to stop, and ends after GRACE seconds wherever it is. Where another process has said why it ends, and torchrun therefore
ends this one before its loop, it says nothing, and has the code of the other.

Python runs its own handlers in the main thread between two bytecodes, which a compiler or a collective may keep from
happening for minutes. So a thread reads what the C handler writes (signal.set_wakeup_fd), and decides.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from lit_gpt.errors import EXIT_PEER_LOST
from lit_gpt.utils.launcher import world_size
from lit_gpt.utils.once import code_said

GRACE = 20.0  # seconds; less than the 30 after which torchrun kills a process that it passed a signal on to
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STARTING, FIRST_STEP, TRAINING, ENDING = "starting", "first step", "training", "ending"


class Signals:
    """Listens between `with` and its end, in the main thread; elsewhere it hears nothing.

    phase: STARTING, FIRST_STEP, TRAINING or ENDING, set by the loop. asked: whether the run is to stop.
    abandons: a sentence about what is lost if the run ended now.
    A signal that was ignored at the start stays ignored: nohup does that to HUP.
    """

    def __init__(self) -> None:
        self.grace, self.phase, self.asked = GRACE, STARTING, False
        self.abandons: Callable[[], str] = lambda: "Nothing was trained, nothing is lost."
        self._first: tuple[int, float] | None = None  # the signal that asked, and when it came
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._alone_since: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {n: before for n in STOPS if (before := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, self._handle)
        _listening.append(self)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            self.forget()
            os.close(self._write)  # the thread reads the end of it, and closes the other side
            self._thread.join()  # a daemon that is met by the interpreter's end may abort it
            _listening.remove(self)

    def forget(self) -> None:
        """Put back the handlers of signals that were there before, but for signals that were given another since."""
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._read], [], [], 0.5)
            numbers = os.read(self._read, 64) if ready else b""
            if ready and not numbers:
                os.close(self._read)
                return
            for number in numbers:
                if number in self._before:
                    self._received(number)
            self._check()

    def _received(self, number: int) -> None:
        self.asked = True
        if self.phase == STARTING:
            if (code := code_said()) is not None:  # torchrun ends this process, since another one has failed
                leave(code)
            leave(128 + number, f"stopped by {_name(number)} before training started; nothing is lost.")
        if self._first is None:
            self._first = number, time.monotonic()
            if number == signal.SIGINT and self.phase != ENDING and os.environ.get("RANK", "0") == "0":
                say("interrupted: the current step ends, then a checkpoint is saved. A second Ctrl-C ends it at once.")
        elif number == signal.SIGINT:
            leave(128 + number, f"interrupted again: ends at once. {self.abandons()}")

    def _check(self) -> None:
        if self._first and self.phase == FIRST_STEP and time.monotonic() > self._first[1] + self.grace:
            number = self._first[0]
            leave(
                128 + number,
                f"stopped by {_name(number)} in the first step of this start, which did not end within {self.grace:g} "
                "seconds (compiling takes long, and so does a large --total_bsz without a GPU); there is nothing to "
                "save, and nothing is lost.",
            )
        if self._launcher is None or os.getppid() == self._launcher:
            return
        self.asked, self._alone_since = True, self._alone_since or time.monotonic()
        if self.phase == STARTING or time.monotonic() > self._alone_since + self.grace:
            leave(EXIT_PEER_LOST, f"torchrun (process {self._launcher}) is gone, so this ends. {self.abandons()}")


_listening: list[Signals] = []


_held: list[set[int]] = []  # signals that were blocked before a fork


def _before_fork() -> None:
    """Signals wait: one that reached a child before _in_child would go through the pipe to its parent."""
    if _listening:
        _held.append({int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)})


def _after_fork() -> None:
    if _held:
        signal.pthread_sigmask(signal.SIG_SETMASK, _held.pop())


def _in_child() -> None:
    """A forked child shares the pipe: a signal to it must not end its parent."""
    for signals in reversed(_listening):
        signals.forget()
    _listening.clear()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def leave(code: int, text: str = "") -> NoReturn:
    """End this process now, whatever its other threads wait for, with a line on stderr if there is one."""
    rank = f"rank {os.environ['RANK']}: " if world_size() > 1 else ""
    if text:
        say(rank + text)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def say(text: str) -> None:
    """A line on stderr; not print, since another thread may hold the lock of sys.stderr."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
