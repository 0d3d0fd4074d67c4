"""Saves that fail: they are said, training goes on, and no exit code promises a checkpoint that is not there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ranks import run, start_ranks
from tiny_run import folder_of, newest_step, pretrain, rows, saved_steps, words

from lit_gpt.checkpoint import Checkpointer
from lit_gpt.errors import EXIT_NOT_FINITE, EXIT_NOT_WRITTEN, NotWritten
from lit_gpt.model import GPT
from lit_gpt.train import reporter
from lit_gpt.train.stopping import EXIT_INTERRUPTED

OPTIONS: dict[str, Any] = {"max_tokens": 6 * 512, "save_step": 2, "keep_last": 9}


def refuse(*tries: int, of_rank: int = 0) -> Any:
    """A Checkpointer._write whose n-th tries find no room."""
    write, count = Checkpointer._write, iter(range(1, 99))

    def patched(self: Checkpointer, *args: Any) -> Any:
        written = write(self, *args)
        if next(count) in tries and self.is_main == (of_rank == 0):
            raise OSError(28, "No space left on device")
        return written

    return patched


@pytest.mark.parametrize("async_save", [True, False])
def test_a_save_in_the_middle(async_save, data, tmp_path, monkeypatch, capsys):
    """It ended the run at the next save, whose steps were lost too."""
    monkeypatch.setattr(Checkpointer, "_write", refuse(2))
    assert run(data, tmp_path, async_save=async_save, **OPTIONS) == 0
    said = capsys.readouterr().err
    assert said.count("NOT SAVED: the checkpoint of step 4 ") == 1 and "No space left on device" in said
    assert "The newest is step-000002; the next save tries again." in said
    assert list(rows(tmp_path, "checkpoint/failed_saves").values()) == [1]
    assert saved_steps(tmp_path) == ["step-000002", "step-000006"]


@pytest.mark.parametrize("stop_after", [None, 5])
def test_the_last_save_is_tried_twice(stop_after, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpointer, "_write", refuse(3))
    assert run(data, tmp_path, stop_after=stop_after, **OPTIONS) == (EXIT_INTERRUPTED if stop_after else 0)
    assert newest_step(tmp_path) == (stop_after or 6)


@pytest.mark.parametrize("stop_after", [None, 5])
def test_a_last_save_that_fails_twice(stop_after, data, tmp_path, monkeypatch, capsys):
    """The code of bad input, and a summary that called the run finished, which made a sweep skip it."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_write", refuse(3, 4))
        assert run(data, tmp_path, stop_after=stop_after, **OPTIONS) == EXIT_NOT_WRITTEN
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the checkpoint of step {stop_after or 6} could not be written in two tries; the")
    assert "newest checkpoint is that of step 4. Make room" in error
    assert newest_step(tmp_path) == 4
    summary = json.loads((folder_of(tmp_path) / "summary.json").read_text())
    assert (summary["finished"], summary["interrupted"]) == (False, False)
    assert run(data, tmp_path, resume="auto", **OPTIONS) == 0


def test_a_last_save_and_a_summary_that_fail(data, tmp_path, monkeypatch, capsys):
    """On a disk that is really full: the last line named the figure alone, and not the checkpoint."""
    monkeypatch.setattr(Checkpointer, "_write", refuse(3, 4))
    monkeypatch.setattr(reporter, "write_summary", no_summary)
    assert run(data, tmp_path, **OPTIONS) == EXIT_NOT_WRITTEN
    summary, save = capsys.readouterr().err.splitlines()[-2:]
    assert summary == "error: summary.json could not be written."
    assert save.startswith("error: the checkpoint of step 6 could not be written in two tries;")


def no_summary(*_: Any) -> None:
    raise NotWritten("summary.json could not be written.")


def test_a_run_that_is_ended_without_room(data, tmp_path, monkeypatch):
    """EXIT_NOT_FINITE promises a checkpoint too."""
    forward = GPT.forward

    def spoilt(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        return output._replace(loss=output.loss * float("nan"))

    monkeypatch.setattr(GPT, "forward", spoilt)
    options = {**OPTIONS, "max_skips": 2, "save_step": 100}
    assert run(data, tmp_path / "with", **options) == EXIT_NOT_FINITE
    monkeypatch.setattr(Checkpointer, "_write", refuse(1, 2))
    assert run(data, tmp_path / "without", **options) == EXIT_NOT_WRITTEN


def on_rank(argv: list[str]) -> int:
    Checkpointer._write = refuse(2, of_rank=1)  # type: ignore[method-assign]
    return pretrain.main(argv)


def test_one_rank_that_cannot_write(data, tmp_path):
    """All ranks go on, and agree on what is there."""
    ranks = start_ranks(tmp_path, 2, on_rank, words(data, tmp_path / "out", micro_bsz=1, **OPTIONS))
    assert [rank.ends() for rank in ranks] == [0, 0], ranks[0].said
    assert "NOT SAVED" in ranks[0].said and "rank 1: " in ranks[0].said
    assert newest_step(tmp_path / "out") == 6
