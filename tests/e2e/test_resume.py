"""A run that was stopped and continued is the run that was not, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_run import ROOT, folder_of, rows, run, words

from lit_gpt.checkpoint import export, find_checkpoint, load_exported, read_meta
from lit_gpt.train.signals import EXIT_INTERRUPTED

# A log line covers three steps, so that stops fall inside one. Ramp-up makes the batches grow.
OPTIONS: dict[str, Any] = {"log_step": 3, "total_bsz": 128, "micro_bsz": 2, "bramp_ratio": 4, "num_workers": 1}


def newest(out: Path) -> Path:
    path = find_checkpoint(folder_of(out), True)
    assert path is not None
    return path


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_exported(export(newest(out), out / "weights.pth"))[0]


def assert_same_run(out: Path, expected: Path) -> None:
    for key in ("metric/train_loss", "metric/grad_norm", "total_tokens", "samples", "metric/val_loss@1x"):
        assert rows(out, key) == rows(expected, key), key
    found, wanted = weights(out), weights(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


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


def test_terminated_and_continued(data, tmp_path):
    """What a cluster does to a job whose time is over: SIGTERM, exit code 75, the same command again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"max_tokens": 400 * 512, **OPTIONS}
    command = [sys.executable, str(ROOT / "pretrain.py"), *words(data, parts, resume="auto", **options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(f.stat().st_size for f in parts.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert "--resume auto continues" in output
    summary = (folder_of(parts) / "summary.json").read_text()
    assert '"interrupted": true' in summary and (folder_of(parts) / "loss_curve.png").exists()
    step = read_meta(newest(parts))["step"]
    assert run(data, parts, resume="auto", stop_after=3, **options) == EXIT_INTERRUPTED
    assert run(data, whole, stop_after=step + 3, **options) == EXIT_INTERRUPTED
    assert_same_run(parts, whole)
