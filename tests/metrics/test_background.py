"""Trackers that hang, are slow, or raise: the run does not wait for them, and ends as it would without them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from lit_gpt.metrics import background, trackers
from lit_gpt.metrics.background import Background, Texts, hanging
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.trackers import RunInfo


class Fake:
    """Waits for a gate wherever it is told to, and raises what it is told to."""

    def __init__(self, gate: threading.Event | None = None, error: BaseException | None = None):
        self.gate, self.error, self.logged = gate, error, []
        self.closed = False

    def connect(self) -> Fake:
        self._wait()
        return self

    def _wait(self) -> None:
        if self.gate:
            self.gate.wait()

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.error:
            raise self.error
        self.logged.append((dict(values), step))

    def texts(self, rows: Texts, step: int) -> None:
        self.logged.append((list(rows), step))

    def close(self) -> None:
        self.closed = True


def test_an_unreachable_server_holds_up_neither_start_nor_steps():
    """wandb held up a start by 107 seconds. What is logged until it answers arrives then."""
    gate = threading.Event()
    fake = Fake(gate)
    tracker = Background("fake", fake.connect)
    for step in range(5):
        tracker.log({"loss": 1.0 * step}, step)
    assert fake.logged == []
    gate.set()
    tracker.close()
    assert [step for _, step in fake.logged] == [0, 1, 2, 3, 4] and fake.closed and not hanging()


def test_texts_arrive_in_their_place():
    tracker = Background("fake", (fake := Fake()).connect)
    tracker.log({"loss": 1.0}, 1)
    tracker.texts([("a", "b")], 1)
    tracker.close()
    assert fake.logged == [({"loss": 1.0}, 1), ([("a", "b")], 1)]


def test_records_without_room_are_counted(monkeypatch):
    monkeypatch.setattr(background, "ROOM", 3)
    gate = threading.Event()
    fake = Fake(gate)
    tracker = Background("fake", fake.connect)
    with pytest.warns(UserWarning) as caught:
        for step in range(10):
            tracker.log({}, step)
        gate.set()
        tracker.close()
    assert [step for _, step in fake.logged] == [0, 1, 2]
    slow, missing = (str(w.message) for w in caught)
    assert "is too slow (3 records wait, and further ones are dropped)" in slow
    assert "7 records did not reach it" in missing


def test_the_end_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(background, "PATIENCE", 0.05)
    gate = threading.Event()
    tracker = Background("fake", Fake(gate).connect)
    tracker.log({}, 1)
    with pytest.warns(UserWarning, match="did not end .* records wait after 0.05 seconds"):
        tracker.close()
    assert hanging()
    gate.set()
    tracker._thread.join()


@pytest.mark.parametrize("error", [ConnectionError("no route"), SystemExit(1), KeyboardInterrupt()])
def test_nothing_that_it_raises_ends_a_run(error):
    """A library that called sys.exit ended the training of a week."""
    tracker = Background("fake", Fake(error=error).connect)
    with pytest.warns(UserWarning, match="fake logger (failed|has not everything)") as caught:
        for step in range(3):
            tracker.log({}, step)
        tracker.close()
    assert len(caught) == 2, "that it failed, and how many records"


def test_one_that_cannot_connect():
    def connect() -> Fake:
        raise SystemExit("no login")

    with pytest.warns(UserWarning, match="fake logger (failed|has not everything)"):
        tracker = Background("fake", connect)
        tracker.log({}, 1)
        tracker.close()
    assert tracker.lost == 1


def test_sinks_run_all_trackers_like_this(tmp_path, monkeypatch):
    gate = threading.Event()
    made: list[RunInfo] = []

    def connect(info: RunInfo) -> Fake:
        made.append(info)
        return Fake(gate).connect()

    monkeypatch.setitem(trackers.CLASSES, "wandb", connect)
    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    sinks = Sinks(tmp_path, ["wandb"], run_name="r", project="p", config={}, resume_step=0)
    sinks.log({"loss": 1.0}, 1)
    assert (tmp_path / "metrics.jsonl").read_text()
    gate.set()
    sinks.close()
    assert made[0].run_name == "r"


HANGS = """
import atexit, sys, threading, time
from lit_gpt.metrics import background
background.PATIENCE = 0.05
import pretrain
atexit.register(time.sleep, 600)  # as a library that waits for its server
background.Background("fake", lambda: time.sleep(600)).close()
pretrain.leave(7)
"""


def test_a_process_does_not_wait_for_exit_hooks_of_a_library_that_hangs():
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", HANGS], cwd=Path(__file__).parents[2], timeout=60)
    assert ended.returncode == 7
