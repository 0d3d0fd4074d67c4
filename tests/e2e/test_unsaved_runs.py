"""Runs whose checkpoints cannot be written, and runs whose newest checkpoint is damaged."""

from __future__ import annotations

import json

import pytest
from tiny_run import folder_of, rows, run, saved_steps

from lit_gpt.checkpoint import Checkpointer
from lit_gpt.errors import EXIT_NOT_WRITTEN


@pytest.fixture
def full(monkeypatch):
    """A disk that is full at the given saves, counted from 1; which steps were tried."""

    def at(*failing: int) -> list[str]:
        write, tried = Checkpointer._write, []

        def full_disk(self, staged, tmp):
            tried.append(tmp.name.removeprefix(".tmp-"))
            if len(tried) in failing:
                raise OSError(28, "No space left on device")
            return write(self, staged, tmp)

        monkeypatch.setattr(Checkpointer, "_write", full_disk)
        return tried

    return at


def summary(out) -> dict:
    return json.loads((folder_of(out) / "summary.json").read_text())


@pytest.mark.parametrize("more", [{}, {"stop_after": 4}], ids=["finished", "interrupted"])
def test_a_run_without_its_last_checkpoint_ends_with_a_code_of_its_own(more, data, tmp_path, full, capsys):
    """It ended with 0 and "finished", or with 75 and "stopped early with a checkpoint", and there was none."""
    tried = full(*range(1, 9))
    assert run(data, tmp_path, save_step=3, **more) == EXIT_NOT_WRITTEN
    assert len(tried) >= 3 and tried[-1] == tried[-2], "the last one is tried once more"
    out, err = capsys.readouterr()
    assert (
        err.count("NOT SAVED") == len(tried)
        and "could not be written in two tries" in err
        and "--resume auto starts anew" in err  # not "continues from there", where nothing is
        and "with a checkpoint" not in out
    )
    assert saved_steps(tmp_path) == []
    found = summary(tmp_path)
    assert found["saved"] is False and found["finished"] is False


def test_training_goes_on_and_a_later_save_succeeds(data, tmp_path, full, capsys):
    full(1)
    assert run(data, tmp_path, save_step=3) == 0
    assert "NOT SAVED: the checkpoint of step 3 " in capsys.readouterr().err
    assert saved_steps(tmp_path) == ["step-000006", "step-000008"]
    assert set(rows(tmp_path, "checkpoint/failed_saves").values()) == {1}
    assert summary(tmp_path)["finished"] is True


def test_a_last_save_that_fails_once_is_tried_again(data, tmp_path, full):
    assert full(1) is not None
    assert run(data, tmp_path) == 0
    assert saved_steps(tmp_path) == ["step-000008"]


def test_a_run_goes_on_from_the_newest_whole_checkpoint(data, tmp_path, capsys):
    """A cut file in the newest one was a traceback, although the one before lay beside it."""
    assert run(data, tmp_path / "a", save_step=2, stop_after=4) == 75
    newest = folder_of(tmp_path / "a") / "checkpoints" / "step-000004"
    (newest / "__0_0.distcp").write_bytes((newest / "__0_0.distcp").read_bytes()[:-1])
    capsys.readouterr()
    assert run(data, tmp_path / "a", save_step=2, resume="auto") == 0
    assert "step-000002 is used" in capsys.readouterr().err
    assert run(data, tmp_path / "b", save_step=2) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
