"""Runs with dropout have the same masks if they stop, recompute, split their batches or have more processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from spawn import run_distributed
from tiny_run import pretrain, rows, run, words

from lit_gpt.train.stopping import EXIT_INTERRUPTED

OPTIONS: dict[str, Any] = {"dropout": 0.2, "depth": 2, "max_tokens": 6 * 512, "async_save": False}
SAME: dict[str, dict[str, Any]] = {
    "recomputed": {"act_ckpt": "full"},
    "recomputed in part": {"act_ckpt": "selective"},
    "smaller micro-batches": {"micro_bsz": 2},
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert run(data, out, val_data_dir=data, eval_step=3, eval_sequences=4, **OPTIONS) == 0
    return out


@pytest.mark.parametrize("case", SAME)
def test_the_same_masks(case, data, whole, tmp_path):
    assert run(data, tmp_path, **OPTIONS, **SAME[case]) == 0
    assert rows(tmp_path) == pytest.approx(rows(whole), rel=1e-5)


def test_stopped_and_continued_to_the_bit(data, whole, tmp_path):
    assert run(data, tmp_path, stop_after=2, resume="auto", **OPTIONS) == EXIT_INTERRUPTED
    assert run(data, tmp_path, resume="auto", **OPTIONS) == 0
    assert rows(tmp_path) == rows(whole) and rows(tmp_path, "metric/grad_norm") == rows(whole, "metric/grad_norm")


def test_two_processes(data, whole, tmp_path):
    assert run_distributed(pretrain.main, 2, words(data, tmp_path, **{**OPTIONS, "micro_bsz": 4})) == [0, 0]
    assert rows(tmp_path) == pytest.approx(rows(whole), rel=1e-5)


def test_validation_drops_nothing(data, tmp_path):
    """What a run without dropout measures of the same weights: the rate is so small that they stay where they are."""
    still = {**OPTIONS, "base_hps__eta0": 1e-12, "val_data_dir": data, "eval_step": 3, "eval_sequences": 4}
    for name, rate in (("with", 0.2), ("without", 0)):
        assert run(data, tmp_path / name, **{**still, "dropout": rate}) == 0
    assert rows(tmp_path / "with")[1] != pytest.approx(rows(tmp_path / "without")[1], rel=1e-5)
    measured = [rows(tmp_path / name, "metric/val_loss@1x") for name in ("with", "without")]
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
