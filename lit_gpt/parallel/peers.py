"""Processes that wait for one that does not come: found within the limit, named, and ended.

Every rank writes where it is to a small file of its own in the run folder, which all hosts see. The file comes from a
thread, so it grows old only when the whole process stands still (or is gone, or its host). When a rank has waited in
one place for nearly the limit of a collective, it reads the others' files: those that are old, or in an earlier place,
did not arrive. This ends the process with a sentence before NCCL's watchdog would abort it without one, and does not
ask the network, which may be what failed. Where nobody is late, as behind a cut link, the collective itself fails at
its limit, and `lost` says what is known.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lit_gpt.errors import EXIT_PEER_LOST
from lit_gpt.parallel.fabric import Runtime
from lit_gpt.utils.files import write_text
from lit_gpt.utils.once import code_said
from lit_gpt.utils.signals import leave

# The share of the limit after which a waiting rank looks for who is late. It can name that rank, and the failing
# collective cannot, so it has to end the run first.
NEARLY = 0.9
FOLDER = ".ranks"
ENDED = "has ended"


class Peers:
    """Of one run of several processes; with one process it only removes what a killed start of several left.

    folder: the run folder. All ranks call `at` in the same order.
    """

    def __init__(self, folder: Path, runtime: Runtime):
        self.folder, self.runtime = folder / FOLDER, runtime
        self.patience = NEARLY * runtime.timeout
        self._place, self._doing, self._since = 0, "starting", time.monotonic()
        self._closed, self._thread = threading.Event(), None
        if runtime.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a start before, which may have had more processes
        if runtime.world_size > 1:
            if runtime.is_main:
                self.folder.mkdir(exist_ok=True)
            runtime.barrier()
            self._tell()
            self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
            self._thread.start()

    def at(self, doing: str) -> None:
        """This rank goes on to something else; costs nothing."""
        self._place, self._doing, self._since = self._place + 1, doing, time.monotonic()

    def stop(self) -> None:
        """End the thread that watches; this rank shows no more signs of life."""
        self._closed.set()
        if self._thread:
            self._thread.join(10)  # seconds; it may hang in a file system

    def close(self) -> None:
        """Stop on all ranks, and leave nothing behind."""
        self.stop()
        if self._thread:
            self.runtime.barrier()
            if self.runtime.is_main:
                shutil.rmtree(self.folder, ignore_errors=True)

    def lost(self, error: Exception) -> None:
        """End this process where `error` is of a collective, naming who is missing; else return."""
        if self._closed.is_set() or not is_of_collective(error):
            return
        found: list[str] = []
        elsewhere: list[str] = []
        enough = time.monotonic() + self._interval

        def look() -> None:  # a process that ends closes its connections a moment before it is seen to have ended
            elsewhere.extend(self._elsewhere())  # once: ranks do not move
            while time.monotonic() < enough and not any(late.endswith(ENDED) for late in found):
                found[:] = self._late(at_once=True)
                time.sleep(0.1)

        # In a thread, for a file system that went with the network would keep this process for ever.
        reader = threading.Thread(target=look, daemon=True)
        reader.start()
        reader.join(self._interval)
        nobody = (
            "nobody is seen to be behind: the network between them failed, one is slow, or one of another host ended"
        )
        if elsewhere:
            nobody = (
                f"nobody is seen to be behind: the network failed, or is slow, between here and {'; '.join(elsewhere)}"
            )
        self._end(f"a connection failed ({str(error).splitlines()[0]})", found or [nobody])

    @property
    def _interval(self) -> float:
        """Seconds between two signs of life: short beside the limit, which tests set to a few seconds."""
        return min(5.0, self.runtime.timeout / 10)

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            self._tell()
            waited = time.monotonic() - self._since
            if waited > self.patience and (late := self._late(at_once=False)):
                self._end(f"nothing moved for {waited:.0f} seconds", late)

    def _tell(self) -> None:
        """Write this rank's sign of life."""
        said = {"place": self._place, "doing": self._doing, "host": socket.gethostname(), "pid": os.getpid()}
        with suppress(OSError):  # no folder, no room: nothing is learned then
            write_text(self.folder / f"{self.runtime.rank}.json", json.dumps(said))

    def _late(self, at_once: bool) -> list[str]:
        """Who is in an earlier place than this rank, or showed no sign of life; in words.

        at_once: something failed already, so whoever has just ended is looked for too.
        """
        late = []
        for rank, said, age in self._others():
            if state := self._state(said, age, at_once):
                late.append(f"{_named(rank, said)}, last seen in {said['doing']}, {state}")
        return late

    def _elsewhere(self) -> list[str]:
        """The ranks of other hosts, in words."""
        return [_named(rank, said) for rank, said, _ in self._others() if said["host"] != socket.gethostname()]

    def _others(self) -> Iterator[tuple[int, dict[str, Any], float]]:
        """(rank, what it said, by how many seconds that is older than what this one said) of the others."""
        for rank in range(self.runtime.world_size):
            path = self.folder / f"{rank}.json"
            with suppress(OSError, ValueError):
                age = _time(self.folder / f"{self.runtime.rank}.json") - _time(path)
                said = json.loads(path.read_text())
                if rank != self.runtime.rank:
                    yield rank, said, age

    def _state(self, said: dict[str, Any], age: float, at_once: bool) -> str | None:
        """What is wrong with a rank, in words; None where nothing is. See _others and _late for the arguments."""
        if at_once and said["host"] == socket.gethostname() and _ended(said["pid"]):
            return ENDED
        if age > max(3 * self._interval, self.patience / 2):
            return f"has shown no sign of life for {age:.0f} seconds"
        return "has not come further" if said["place"] < self._place else None

    def _end(self, what: str, late: list[str]) -> None:
        leave(
            EXIT_PEER_LOST,
            f"error: in {self._doing}, {what}: {'; '.join(late)}. The limit is --collective_timeout "
            f"{self.runtime.timeout:g} seconds. Checkpoints are as they were; --resume auto continues from the newest.",
        )


def is_of_collective(error: Exception) -> bool:
    """Whether torch.distributed failed, and not what it was asked to carry; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def failed_connections(limit: float) -> Iterator[None]:
    """Before and after the steps: end the process where a connection to another rank fails or takes `limit` seconds.

    Where a process of this host has said why it ended, which is what the connection failed of, nothing more is said.
    """
    try:
        yield
    except Exception as error:
        if is_of_collective(error):
            if (code := code_said()) is not None:
                leave(code)
            said = f"before or after training, a connection failed: {error}"
            leave(EXIT_PEER_LOST, f"error: {said} The limit is --collective_timeout {limit:g} seconds.")
        raise


def _named(rank: int, said: dict[str, Any]) -> str:
    return f"rank {rank} (process {said['pid']} on {said['host']})"


def _time(path: Path) -> float:
    return path.stat().st_mtime  # by the clock of the file system, which all hosts share


def _ended(pid: int) -> bool:
    """Whether a process of this host is gone, or is waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it goes while this reads
        return Path("/proc/self").exists()
