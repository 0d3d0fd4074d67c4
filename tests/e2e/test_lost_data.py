"""Data that disappears under a run: an error that names the file, and nothing that was learned is lost."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from spawn import run_distributed, start
from tiny_run import folder_of, pretrain, rows, run, words

from lit_gpt.checkpoint import find_checkpoint, read_meta
from lit_gpt.train.loop import Trainer

STEPS = 8
OPTIONS: dict[str, Any] = {"max_tokens": STEPS * 512, "micro_bsz": 2, "num_workers": 0}
LOSES_AFTER = 3


def pretrain_and_lose(arguments: list[str], shard: Path, said: Path) -> int:
    """pretrain.py in a process of its own whose main rank cuts a file short after three steps."""
    step = Trainer.step

    def step_and_cut(self: Trainer, report: Any) -> None:
        step(self, report)
        if self.progress.step == LOSES_AFTER and self.runtime.is_main:
            os.truncate(shard, 30)

    Trainer.step = step_and_cut
    with said.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return pretrain.main(arguments)


def leave(*arguments: Any) -> None:
    raise SystemExit(pretrain_and_lose(*arguments))


def copy_of(data: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(("split", "workers"), [("train", 1), ("validation", 0)])
def test_a_file_that_is_cut_short(split, workers, data, tmp_path):
    """A shard truncated while it was mapped killed the process with SIGBUS, and the steps since the last save."""
    given, out, said = copy_of(data, tmp_path / "data"), tmp_path / "out", tmp_path / "said.txt"
    shard = given / f"{split}_0000000000.bin"
    whole = shard.read_bytes()
    options = {**OPTIONS, "num_workers": workers, "val_data_dir": given, "eval_step": 5, "eval_sequences": 4}
    process = start(leave, words(given, out, **options), shard, said)
    process.join(120)
    message = said.read_text().partition("error: ")[2]
    assert process.exitcode == 2, said.read_text()
    assert f"The data file {shard} was cut short" in message and "Traceback" not in message
    checkpoint = find_checkpoint(folder_of(out), True)
    assert checkpoint is not None
    saved = read_meta(checkpoint)
    assert LOSES_AFTER <= saved["step"] < STEPS and saved["data"]["samples_seen"] == 8 * saved["step"]
    assert f"The checkpoint of step {saved['step']} is saved; continue with --resume auto." in message
    shard.write_bytes(whole)
    assert run(given, out, resume="auto", **options) == 0
    assert run(data, tmp_path / "whole", **{**options, "val_data_dir": data}) == 0
    assert rows(out) == rows(tmp_path / "whole")


def test_all_ranks_end_together(data, tmp_path):
    """One rank whose data is gone left the others waiting for it in the model."""
    given, out, said = copy_of(data, tmp_path / "data"), tmp_path / "out", tmp_path / "said.txt"
    shard = given / "train_0000000000.bin"
    arguments = words(given, out, **OPTIONS)
    assert run_distributed(pretrain_and_lose, 2, arguments, shard, said) == [2, 2]
    assert said.read_text().count(f"error: The data file {shard} was cut short") == 2
    assert find_checkpoint(folder_of(out), True) is not None
