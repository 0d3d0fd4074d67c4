"""A run folder has one owner: one that lives is not disturbed, one that is dead or frozen does not block for good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from killed_run import OPTIONS, launch, run_killed
from ranks import freeze
from spawn import run_distributed, start
from tiny_run import folder_of, pretrain, words

from lit_gpt.config.cli import parse
from lit_gpt.errors import EXIT_NOT_OWNER, NotOwner
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train import lease
from lit_gpt.train.lease import take_lease

INTERRUPTED = 75
STALE = 0.5


@pytest.fixture(autouse=True)
def short(monkeypatch):
    times(0.05, STALE, monkeypatch.setattr)


@pytest.fixture
def never_stale(monkeypatch):
    monkeypatch.setattr(lease, "STALE_AFTER", 1e9)


def times(renew: float, stale: float, assign: Any = setattr) -> None:
    assign(lease, "RENEW_EVERY", renew)
    assign(lease, "STALE_AFTER", stale)


def hold(folder: Path, machine: str | None, code: Any) -> None:
    """In a process: own the folder until that is over. machine: claimed to be on another one."""
    times(0.05, STALE)
    if machine:
        lease._machine = lambda: machine
    held = take_lease(folder)
    try:
        while True:
            time.sleep(0.01)
            held.check()
    except NotOwner as error:
        code.write_text(str(error))
        os._exit(error.code)


def owner(folder: Path, machine: str | None = None) -> Any:
    process = start(hold, folder, machine, folder.with_name("said"))
    while not any(re.search(rb'"renewals": [1-9]', path.read_bytes()) for path in folder.glob("lease-*")):
        time.sleep(0.02)
    return process


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("machine", [None, "another"])
def test_a_live_owner_is_named_and_not_disturbed(machine, folder, never_stale):
    """Two processes trained in one folder, and one removed what the other was publishing."""
    process = owner(folder, machine)
    with pytest.raises(NotOwner, match=rf"in use by process {process.pid} on \S+ \(last renewed 20.*\)\. Stop that"):
        take_lease(folder)
    assert process.is_alive() and len(list(folder.iterdir())) == 1
    kill(process)


def test_a_killed_owner_of_this_machine_does_not_block(folder, never_stale):
    """Not for a moment, although its lease is fresh: the process is looked up."""
    kill(owner(folder))
    take_lease(folder).close()
    assert [path.name for path in folder.iterdir()] == ["lease-000002"]


def test_a_process_that_has_the_number_of_a_dead_one_is_not_it(folder, never_stale):
    """Numbers of processes are used again; the time of the start tells them apart."""
    kill(owner(folder))
    path = folder / "lease-000001"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid()}))
    take_lease(folder).close()


@pytest.mark.parametrize("text", [None, b"", b"{'half", b"[1]"])
def test_an_owner_of_whom_nothing_is_known(text, folder, capsys):
    """Killed on another host, or before it wrote its name: waited for, and then taken over."""
    kill(owner(folder, "another"))
    if text is not None:
        (folder / "lease-000001").write_bytes(text)
    take_lease(folder).close()
    assert "looking for up to 0.5 s whether that still runs" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["nested too deep", "a folder", "a pipe"])
def test_a_lease_that_is_none(kind, folder):
    """A RecursionError, an IsADirectoryError, and a start that hung for good."""
    path = folder / "lease-000004"
    if kind == "nested too deep":
        path.write_text("[" * 100_000)
    else:
        path.mkdir() if kind == "a folder" else os.mkfifo(path)
    held = take_lease(folder)
    assert held.path.name == "lease-000005" and path.exists() == (kind == "a folder")
    held.close()


def test_a_frozen_owner_finds_out_when_it_wakes_up(folder):
    """It would have gone on writing over what its successor wrote."""
    process = owner(folder)
    freeze(process)
    held = take_lease(folder)
    before = held.path.read_bytes()
    os.kill(process.pid, signal.SIGCONT)
    process.join(10)
    assert process.exitcode == EXIT_NOT_OWNER == 6
    said = folder.with_name("said").read_text()
    assert f"taken over by process {os.getpid()} on " in said and "suspended for more than 0.5 s" in said
    assert held.path.read_bytes()[:30] == before[:30] and len(list(folder.iterdir())) == 1
    held.check()
    held.close()


def test_one_of_many_takes_over(folder, never_stale):
    """Removing a stale lock and making one's own, as two steps, gives it to both of two that do so."""
    kill(owner(folder))
    got: list[lease.Lease] = []
    refused: list[NotOwner] = []
    gate = threading.Barrier(8)

    def contend() -> None:
        gate.wait()
        try:
            got.append(take_lease(folder))
        except NotOwner as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].check()
    got[0].close()


def test_a_folder_that_is_gone_or_emptied(folder):
    """Whether it was removed, moved, or replaced by an empty one."""
    held = take_lease(folder)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(NotOwner, match="is gone: it was removed or renamed"):
        held.check()
    folder.mkdir()
    with pytest.raises(NotOwner, match="taken over by another process, or removed"):
        held.check()
    held.close()
    assert not list(folder.iterdir()), "renewing makes no file"


def refused(arguments: list[str]) -> int:
    times(0.05, 1e9)
    return pretrain.main(arguments)


def test_all_ranks_are_refused(data, tmp_path):
    """Only the main process asks, and the others do not wait for it in a collective for good."""
    resolved = resolve_run(parse(words(data, tmp_path, **OPTIONS)), 1)
    resolved.folder.mkdir()
    process = owner(resolved.folder)
    assert run_distributed(refused, 2, words(data, tmp_path, **OPTIONS)) == [EXIT_NOT_OWNER] * 2
    kill(process)


def test_two_runs_in_one_folder(data, tmp_path):
    """The second is refused; once the first is frozen it takes over; the first wakes up, and leaves all as it is."""
    out, options = tmp_path / "out", {"max_tokens": 10**7, "resume": "auto", "save_step": 100, "keep_last": 100}
    first, said = launch(data, out, **options)
    while not any(path.stat().st_size for path in out.glob("*/metrics.jsonl")):
        assert first.is_alive(), said.read_text()
        time.sleep(0.02)
    code, text = run_killed(data, out, **options)
    assert code == EXIT_NOT_OWNER
    assert re.search(rf"error: The run folder {folder_of(out)} is in use by process {first.pid} on ", text)
    freeze(first)
    code, text = run_killed(data, out, **options, stop_after=3)
    assert code == INTERRUPTED, text
    files = [path for path in folder_of(out).rglob("*") if path.is_file() and "/." not in str(path)]
    before = {path: path.read_bytes() for path in files}
    os.kill(first.pid, signal.SIGCONT)
    first.join(30)
    assert first.exitcode == EXIT_NOT_OWNER
    assert "no longer owns" in said.read_text() and "Traceback" not in said.read_text()
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize("moment", ["its first line", "a later line", "a person moved the file"])
def test_a_run_suspended_between_the_question_and_the_write(moment, tmp_path):
    """It had asked whether the folder is its own, slept, and on waking appended a line to its successor's log."""
    lost: list[Sinks] = []
    suspend = False

    def opened(owned: Any, resume_step: int = 0) -> Sinks:
        return Sinks(tmp_path, ["csv"], run_name="r", project="p", config={}, resume_step=resume_step, owned=owned)

    def owned() -> None:
        """The answer is true; then the process sleeps, and another one takes over."""
        if lost:
            raise NotOwner("no longer owns")
        if suspend:
            lost.append(opened(lambda: None, 1))
            lost[0].log({"loss": 20.0}, 2)

    first = opened(owned)
    if moment != "its first line":
        first.log({"loss": 1.0}, 1)
    if moment == "a person moved the file":
        (tmp_path / "metrics.jsonl").rename(tmp_path / "moved")
        (tmp_path / "metrics.jsonl").write_bytes((tmp_path / "moved").read_bytes())
    suspend = True
    with contextlib.suppress(NotOwner):
        first.log({"loss": 2.0}, 2)
    with pytest.raises(NotOwner):
        first.log({"loss": 3.0}, 3)
    steps = [1, 2] if moment != "its first line" else [2]
    for name, text in (("metrics.jsonl", '"step": {},'), ("metrics.csv", "{},")):
        lines = (tmp_path / name).read_text().splitlines()
        assert [text.format(step) in line for step, line in zip(steps, lines[-len(steps) :])] == [True] * len(steps)
        assert len(lines) == len(steps) + (name == "metrics.csv"), lines
    lost[0].log({"loss": 30.0}, 3)
    lost[0].close()
    assert read_metrics(tmp_path)["step"].tolist() == [*steps, 3]
