"""A run that was stopped and continued is the run that was not, to the bit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from spawn import start
from tiny_run import folder_of, pretrain, rows, run, words

from lit_gpt.checkpoint import find_checkpoint, load_exported, load_full, read_meta, write_exported
from lit_gpt.train.stopping import EXIT_INTERRUPTED

# A log line covers three steps, so that stops fall inside one. Ramp-up makes the batches grow.
OPTIONS: dict[str, Any] = {"log_step": 3, "total_bsz": 128, "micro_bsz": 2, "bramp_ratio": 4, "num_workers": 1}


def newest(out: Path) -> Path:
    path = find_checkpoint(folder_of(out), True)
    assert path is not None
    return path


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_exported(write_exported(*load_full(newest(out)), out / "weights.pth"))[0]


def assert_same_run(out: Path, expected: Path) -> None:
    for key in ("metric/train_loss", "metric/grad_norm", "total_tokens", "samples", "metric/val_loss@1x"):
        assert rows(out, key) == rows(expected, key), key
    found, wanted = weights(out), weights(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def stopped_and_continued(data: Path, folder: Path, **options: Any) -> tuple[Path, Path]:
    """Where a run that was stopped after its third step and continued is, and one that was not stopped."""
    whole, parts = folder / "whole", folder / "parts"
    assert run(data, whole, **options) == 0
    assert run(data, parts, resume="auto", stop_after=3, **options) == EXIT_INTERRUPTED
    assert run(data, parts, resume="auto", **options) == 0
    return parts, whole


def test_stopped_twice_and_continued(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"val_data_dir": data, "eval_step": 2, "eval_sequences": 4, "max_tokens": 3000, **OPTIONS}
    assert run(data, whole, **options) == 0
    for _ in range(2):
        assert run(data, parts, resume="auto", stop_after=2, **options) == EXIT_INTERRUPTED
    assert run(data, parts, resume="auto", **options) == 0
    assert len(rows(whole, "metric/val_loss@1x")) == 4
    assert_same_run(parts, whole)
    before = (folder_of(parts) / "summary.json").read_bytes()
    assert run(data, parts, resume="auto", **options) == 0
    assert (folder_of(parts) / "summary.json").read_bytes() == before, "a finished run has nothing to do"


def test_tables_and_scalars_are_continued(data, tmp_path):
    """The family with every role that has few parameters, under an optimizer with two update rules."""
    options = {
        "train_model": "baseline",
        "optimizer": "muon",
        "table_precision": "bf16",
        "varlen": True,
        "doc_len": 24,
        "depth": 2,
        "max_tokens": 2000,
        **OPTIONS,
    }
    parts, whole = stopped_and_continued(data, tmp_path, **options)
    assert rows(whole, "metric/train_loss") == rows(parts, "metric/train_loss")
    found, wanted = weights(parts), weights(whole)
    assert {"backout", "smear.scale", "blocks.1.mixer.value_embedding.table"} < found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["backout"] != 0.2 and found["smear.scale"] != 0, "they have learned"
    assert {name for name, t in found.items() if t.dtype == torch.bfloat16} == {
        "wte.weight",
        "blocks.1.mixer.value_embedding.table",
    }


def pretrain_into(said: Path, argv: list[str]) -> None:
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(pretrain.main(argv))


def test_terminated_and_continued(data, tmp_path):
    """What a cluster does to a job whose time is over: SIGTERM, exit code 75, the same command again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"max_tokens": 400 * 512, **OPTIONS}
    said = tmp_path / "said.txt"
    process = start(pretrain_into, said, words(data, parts, resume="auto", **options))
    while process.is_alive() and not any(f.stat().st_size for f in parts.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == EXIT_INTERRUPTED, said.read_text()
    assert "--resume auto continues" in said.read_text()
    summary = (folder_of(parts) / "summary.json").read_text()
    assert '"interrupted": true' in summary and (folder_of(parts) / "loss_curve.png").exists()
    step = read_meta(newest(parts))["step"]
    assert run(data, parts, resume="auto", stop_after=3, **options) == EXIT_INTERRUPTED
    assert run(data, whole, stop_after=step + 3, **options) == EXIT_INTERRUPTED
    assert_same_run(parts, whole)
