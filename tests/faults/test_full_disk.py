"""Metrics, summary and figures on a disk that is full, read-only or gone: said, nothing lost, a code of its own."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_run import OPTIONS
from tiny_run import folder_of, rows, run

from lit_gpt.checkpoint import find_checkpoint
from lit_gpt.errors import EXIT_NOT_OWNER, EXIT_NOT_WRITTEN, NotWritten
from lit_gpt.metrics import figures, sinks
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.summary import read_metrics, write_summary
from lit_gpt.train.loop import Trainer

INTERRUPTED = 75


class Disk:
    """os.write and os.replace of a disk that takes `room` more bytes, None for any number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.room: int | None = None
        self.real = os.write
        monkeypatch.setattr(sinks.os, "write", self.write)
        monkeypatch.setattr("lit_gpt.utils.files.os.replace", self.replace(os.replace))

    def write(self, handle: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(handle, data[: self.room])
        self.room = None if self.room is None else self.room - written
        return written

    def replace(self, real: Any) -> Any:
        def replace(source: Path, target: Path) -> None:
            if self.room is not None:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)

        return replace


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def make(folder: Path, *names: str, resume_step: int = 0) -> Sinks:
    return Sinks(folder, names, run_name="run", project="p", config={}, resume_step=resume_step)


def logged(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def test_lines_wait_until_there_is_room(disk, tmp_path):
    """A full disk ended the run at a log line, with a traceback and half a line in the file."""
    made = make(tmp_path, "csv")
    made.log({"loss": 1.0}, 1)
    before, disk.room = (tmp_path / "metrics.jsonl").read_bytes(), 5
    with pytest.warns(UserWarning, match=r"metrics.jsonl cannot be written \(No space left.*Training goes on") as said:
        for step in (2, 3):
            made.log({"loss": float(step)}, step)
    assert len(said) == 1 and (tmp_path / "metrics.jsonl").read_bytes() == before, "no half line"
    disk.room = None
    made.log({"loss": 4.0}, 4)
    made.close()
    assert logged(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    table = csv.DictReader((tmp_path / "metrics.csv").open())
    assert [(int(r["step"]), float(r["loss"])) for r in table] == logged(tmp_path)


def test_each_full_disk_is_said_with_what_a_kill_would_lose(disk, tmp_path):
    """Only the first one of a run was, and not how many lines wait."""
    made = make(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as in a run, where Python drops a text that it has shown
        for step in range(1, 17):
            disk.room = None if step in (1, 4) else 0
            made.log({"loss": 1.0}, step)
    said = [str(warning.message).partition(", from step ")[2] for warning in caught]
    assert [(text.split()[0], text.split()[-1]) for text in said] == [("2", "1."), ("5", "1."), ("5", "10.")]
    assert "a kill would lose" in said[0] and logged(tmp_path)[-1] == (4, 1.0)


@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_what_never_could_be_written_is_counted(disk, tmp_path):
    made = make(tmp_path, "csv")
    made.log({"loss": 1.0}, 1)
    disk.room = 0
    for step in (2, 3):
        made.log({"loss": float(step)}, step)
    with pytest.raises(NotWritten, match=r"The last 2 lines of .*metrics.jsonl .* lost; .*metrics.csv could not be"):
        made.close()
    assert logged(tmp_path) == [(1, 1.0)]


@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_a_resume_on_a_full_disk_keeps_the_file(disk, tmp_path):
    """Cutting metrics.jsonl back to the checkpoint writes it anew, which is done once there is room."""
    first = make(tmp_path)
    for step in (1, 2, 3):
        first.log({"loss": float(step)}, step)
    first.close()
    disk.room = 0
    second = make(tmp_path, resume_step=2)
    second.log({"loss": 30.0}, 3)
    assert logged(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    disk.room = None
    second.close()
    assert logged(tmp_path) == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_corrupt_lines_are_set_aside(tmp_path):
    """One such line stopped every resume, and a person had to look for it."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 1}\n\x00\x00\xff\n{"loss": 2}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    with pytest.warns(UserWarning, match="lines that are no records are left out"):
        np.testing.assert_array_equal(read_metrics(tmp_path)["step"], [1, 2])
    with pytest.warns(UserWarning, match=r"no records; they are in .*metrics\.jsonl\.corrupt now"):
        make(tmp_path, resume_step=2).close()
    assert logged(tmp_path) == [(1, 1), (2, 2)]
    assert file.with_name("metrics.jsonl.corrupt").read_bytes() == b'\x00\x00\xff\n{"loss": 2}\n'


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400"])
def test_numbers_that_json_has_not(value, tmp_path):
    """A step of 1e400 was an OverflowError, and a loss of NaN a ValueError, at every resume."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": {value}}}\n{{"step": {value}}}\n{{"step": 2, "loss": 2}}\n')
    with pytest.warns(UserWarning, match="no records"):
        make(tmp_path, resume_step=2).close()
    assert logged(tmp_path) == [(1, None), (2, 2)]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "loss": "x"}',
        '{"step": 1, "loss": {}}',
        '{"step": 1, "\\ud800": 1}',
        f'{{"step": 1, "loss": {"9" * 400}}}',
    ],
)
def test_records_of_no_numbers_are_set_aside(line, tmp_path):
    """They were a TypeError at the end of the run, and a UnicodeEncodeError at its start."""
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 2, "loss": 2}}\n')
    with pytest.warns(UserWarning, match="no records"):
        make(tmp_path, resume_step=2).close()
    assert logged(tmp_path) == [(2, 2)]


def test_summary_and_figures(disk, tmp_path):
    (tmp_path / "summary.json").write_text("old")
    disk.room = 0
    with pytest.raises(NotWritten, match=r"summary.json could not be written \(No space left on device\)"):
        write_summary(tmp_path, {"loss": 1.0})
    assert (tmp_path / "summary.json").read_text() == "old"
    with pytest.raises(NotWritten, match=r"curve.png could not be written"):
        figures.save(figures.subplots(1, 1)[0], tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_the_run_itself_is_not_lost(file, data, tmp_path, capsys):
    """It trains to its end, publishes its checkpoint, and says what is missing, with code 3."""
    assert run(data, tmp_path, **OPTIONS, stop_after=1) == INTERRUPTED
    path = folder_of(tmp_path) / file
    path.unlink()
    path.mkdir()  # nobody can write there, root neither
    assert run(data, tmp_path, **OPTIONS, resume="auto") == EXIT_NOT_WRITTEN == 3
    shown = capsys.readouterr().err
    assert f"{path}" in shown.partition("error: ")[2] and "Traceback" not in shown
    newest = find_checkpoint(folder_of(tmp_path), True)
    assert newest is not None and newest.name == "step-000002"


def test_a_run_folder_that_is_removed(data, tmp_path, capsys, monkeypatch):
    """The run went on for hours into a file that no name led to, and ended with 0."""
    step = Trainer.step

    def step_and_remove(self: Trainer, report: Any) -> None:
        if self.progress.step == 2:
            shutil.rmtree(self.resolved.folder)
        step(self, report)

    monkeypatch.setattr(Trainer, "step", step_and_remove)
    options = {**OPTIONS, "max_tokens": 64 * 50, "log_step": 1, "save_step": 100}
    assert run(data, tmp_path / "out", **options) == EXIT_NOT_OWNER
    shown = capsys.readouterr().err
    assert "is gone: it was removed or renamed" in shown.partition("error: ")[2] and "step 3/" not in shown
    assert not list((tmp_path / "out").iterdir()), "nothing is written to nowhere"
    monkeypatch.setattr(Trainer, "step", step)
    assert run(data, tmp_path / "out", **options, stop_after=2) == INTERRUPTED and len(rows(tmp_path / "out")) == 2
