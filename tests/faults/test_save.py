"""Saves that are killed at every point, and saves that fail: what was complete stays, what failed is said."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_run import Run, die_before, step
from spawn import run_distributed, start
from tiny_model import build_adamw, build_model

from lit_gpt.checkpoint import Checkpointer, damage, list_checkpoints, load_full, writing
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.parallel import start_runtime


def save_and_die(folder: Path, before: tuple[int, ...], then: int, point: int, keep_last: int) -> None:
    """Save, die before the point-th change of the last save; 7 when there are fewer changes."""
    torch.set_num_threads(1)
    run = Run(folder, keep_last=keep_last)
    run.save(*before)
    die_before(point)
    run.save(then)
    os._exit(7)


# Steps saved before, the one that is killed, keep_last. The last one: a run that went back saves a step again.
SAVES = {"first": ((), 1, 1), "publish and retire": ((1, 2), 3, 1), "again": ((1,), 1, 1)}


@pytest.mark.parametrize("kind", SAVES)
def test_a_kill_at_any_point_of_a_save_loses_nothing_complete(kind, tmp_path):
    """Between two renames of a step saved again there was no checkpoint at all; each death is by injection."""
    before, then, keep_last = SAVES[kind]
    for first in range(1, 100, 4):
        points = range(first, first + 4)
        dead = [start(save_and_die, tmp_path / str(p), before, then, p, keep_last) for p in points]
        for process in dead:
            process.join()
        for point, process in zip(points, dead):
            assert process.exitcode in (7, 9), point
            check_what_is_left(tmp_path / str(point), before, then)
        if any(process.exitcode == 7 for process in dead):
            assert first > 8, "the injection saw hardly any change"
            return
    raise AssertionError("it never ended")


def check_what_is_left(folder: Path, before: tuple[int, ...], then: int) -> None:
    run = Run(folder)
    if list_checkpoints(run.checkpoints):
        assert run.load("auto") in (*before[-1:], then)
    else:
        assert not before
    run.save(9)
    assert run.load() == 9
    assert all(name.startswith("step-") and not name.endswith(".new") for name in run.names())


def test_the_clock_goes_back_and_the_checkpoint_just_written_stays(tmp_path, monkeypatch):
    """The order was wall time: after a clock went back the newest was deleted as the oldest, and an old one resumed."""
    run = Run(tmp_path, keep_last=1)
    for i in (1, 2, 3):
        monkeypatch.setattr("time.time_ns", lambda i=i: 10**18 - i)
        run.save(i)
        assert run.names() == [step(i)]
    assert run.load() == 3


def test_checkpoints_of_early_runs_sort_before_new_ones(tmp_path):
    """Their COMPLETE holds a time in ns, also one from the future."""
    run = Run(tmp_path)
    run.save(5, 6)
    for i, when in ((5, 2 * 10**18), (6, 4 * 10**18)):
        make_early(run.checkpoints / step(i), when)
    assert run.load() == 6
    run.save(3)
    assert run.names() == [step(3), step(6)]
    assert run.load() == 3
    run.save(2)
    assert run.names() == [step(2), step(3)]


def make_early(path: Path, when: int) -> None:
    """What the program before the sums wrote: no SHA256SUMS, and the time in COMPLETE."""
    (path / "SHA256SUMS").unlink()
    (path / "COMPLETE").write_text(str(when))


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_said_and_given_back(tmp_path, capsys):
    """The run ended with 0 and no checkpoint, and each try left its .tmp folder on the full disk."""
    small = tmp_path / "checkpoints"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", small], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        check_full(tmp_path, small / "ballast")
        assert "No space left" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", small], check=True)


def check_full(folder: Path, ballast: Path) -> None:
    run = Run(folder)
    run.save(1)
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        for _ in range(100):
            assert file.write(bytes(1024)), "short writes end in the error"
    run.save(2)
    assert not run.saver.wait() and run.saver.failures == 1
    assert [p.name for p in list_checkpoints(run.checkpoints)] == [step(1)] and f".tmp-{step(2)}" not in run.names()
    ballast.unlink()
    run.save(3)
    assert run.saver.wait() and run.load() == 3


def limited(folder: Path) -> None:
    """A process whose files may be 2 kB long."""
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT), 2)
    run = Run(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    run.save(1)
    sys.stderr.flush()
    os._exit(0 if not run.saver.wait() and run.names() == [] else 1)


def test_a_limit_of_the_size_of_files_is_a_failed_save(tmp_path):
    """`ulimit -f` went unnoticed: torch's CheckpointException is a BaseException."""
    process = start(limited, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert "File too large" in (tmp_path / "said").read_text(), "torch.save says: unexpected pos"


@pytest.mark.parametrize("what", ["write_text", "sync", "take_place"])
def test_a_failure_of_any_part_of_publishing_is_a_failed_save(what, tmp_path, monkeypatch, capsys):
    run = Run(tmp_path)
    run.save(1)
    with monkeypatch.context() as patch:
        patch.setattr(f"lit_gpt.checkpoint.save.{what}", full_disk)
        run.save(2)
    assert not run.saver.wait() and run.names() == [step(1)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "NOT SAVED: the checkpoint of step 2" in line and f"The newest is {step(1)}" in line
    run.save(3)
    assert run.saver.wait() and run.load() == 3


def one_rank_fails(folder: Path) -> tuple[bool, bool, str]:
    """The disk is full for rank 1 alone, in the middle of DCP's collectives; then it is not."""
    runtime = start_runtime()
    model = build_model(runtime)
    optimizer = build_adamw(model, "fused")
    saver = Checkpointer(folder, runtime, keep_last=2, async_save=False)
    with pytest.MonkeyPatch.context() as patch:
        if runtime.rank == 1:
            patch.setattr("lit_gpt.checkpoint.writing._Summed.write", full_disk)
        saver.save(1, model, optimizer, {"tokens": 0})
        failed = not saver.wait()
    left = " ".join(p.name for p in folder.iterdir()) if runtime.is_main else ""
    saver.save(2, model, optimizer, {"tokens": 0})
    saved = saver.wait()
    saver.close()
    return failed, saved, left


def test_one_rank_that_cannot_write_fails_the_save_on_all(tmp_path):
    assert run_distributed(one_rank_fails, 2, tmp_path) == [(True, True, "")] * 2
    assert [p.name for p in list_checkpoints(tmp_path)] == [step(2)]
    load_full(tmp_path / step(2))


@pytest.mark.parametrize(("whose", "published"), [(stat.S_ISDIR, [1]), (stat.S_ISREG, [])])
def test_a_disk_that_cannot_sync_folders_has_checkpoints(whose, published, tmp_path, monkeypatch):
    """Some file systems say EINVAL for a folder, so that no run could save there; for a file it is a failure."""
    fsync = os.fsync

    def refused(handle: int) -> None:
        if whose(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refused)
    run = Run(tmp_path)
    run.save(1)
    assert run.names() == [step(n) for n in published]


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, monkeypatch):
    """It came out at the first save, hours later."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written, so no checkpoint can be saved"):
        Run(tmp_path).save(1)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(NotWritten, match="cannot be written, so no checkpoint can be saved"):  # room may come: code 3
        Run(tmp_path).save(1)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="cannot keep checkpoints"):
        Run(tmp_path).save(1)


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, capsys):
    """Training stopped for good with "Make room"."""
    run = Run(tmp_path, keep_last=1)
    run.save(1)
    monkeypatch.setattr(shutil, "rmtree", full_disk)
    run.save(2)
    assert run.saver.wait() and run.load() == 2
    assert "warning" in capsys.readouterr().err
    monkeypatch.undo()
    run.saver = None
    run.save(3)
    assert run.names() == [step(3)]


def test_large_checkpoints_are_in_several_files(tmp_path, monkeypatch):
    """One thread writes and sums each, and all are read again."""
    monkeypatch.setattr(writing, "BYTES_PER_THREAD", 8)
    run = Run(tmp_path)
    run.save(1)
    (path,) = list_checkpoints(run.checkpoints)
    assert len(list(path.glob("*.distcp"))) == writing.THREADS and damage(path) is None and run.load() == 1
    for file in path.glob("*.distcp"):  # the sum of each one counts
        contents = file.read_bytes()
        file.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
        assert file.name in (damage(path) or "")
        file.write_bytes(contents)


@pytest.mark.parametrize("failing", [0, 3])
def test_any_of_several_files_may_fail(failing, tmp_path, monkeypatch, capsys):
    """What happens in a thread of DCP's is lost; the checkpoint would have been published without it."""
    monkeypatch.setattr(writing, "BYTES_PER_THREAD", 8)
    write = writing._Summed.write

    def full(self, data):
        if Path(self.file.name).name == f"__0_{failing}.distcp":
            self.failure = OSError(28, "No space left on device")
            raise self.failure
        return write(self, data)

    monkeypatch.setattr(writing._Summed, "write", full)
    run = Run(tmp_path)
    run.save(1)
    assert run.saver is not None and not run.saver.wait() and not list_checkpoints(run.checkpoints)
    assert "No space left on device" in capsys.readouterr().err


def test_checkpoints_on_a_disk_that_is_not_there(tmp_path):
    """It was "cannot keep checkpoints (File exists)"."""
    run = Run(tmp_path)
    run.checkpoints.symlink_to(tmp_path / "scratch")
    with pytest.raises(UserError, match="is a link to nothing that is there") as caught:
        run.save(2)
    assert "\n" not in str(caught.value)
    (tmp_path / "scratch").mkdir()
    run.save(2)
    assert run.load() == 2 and (tmp_path / "scratch" / step(2)).is_dir()
