"""--seed draws the weights, --data_seed the order of the data, and neither touches the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import folder_of, rows, run

from lit_gpt.checkpoint import find_checkpoint, load_full
from lit_gpt.errors import EXIT_BAD_INPUT
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.describe import describe
from lit_gpt.train import step
from lit_gpt.train.identity import known_as

OPTIONS: dict[str, Any] = {"depth": 1, "max_tokens": 3 * 512, "train_name": "mup"}


def tokens_of(out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> np.ndarray:
    """What a run's steps see, in order."""
    seen: list[np.ndarray] = []
    move = step.to_device

    def keep(array: np.ndarray, device: torch.device) -> torch.Tensor:
        seen.append(np.array(array))
        return move(array, device)

    with monkeypatch.context() as patch:
        patch.setattr(step, "to_device", keep)
        assert run(data, out, **{**OPTIONS, **options}) == 0
    return np.stack(seen)


def test_two_seeds_with_one_data_seed_see_the_same_tokens(data: Path, tmp_path: Path, monkeypatch) -> None:
    first, second, third = (
        tokens_of(tmp_path / f"{seed}_{of_data}", data, monkeypatch, seed=seed, data_seed=of_data)
        for seed, of_data in ((1, 7), (2, 7), (1, 8))
    )
    assert np.array_equal(first, second) and not np.array_equal(first, third)
    losses = [rows(tmp_path / name)[1] for name in ("1_7", "2_7", "1_8")]
    assert losses[0] != losses[1], "other weights"
    default = tokens_of(tmp_path / "default", data, monkeypatch, seed=7)
    assert np.array_equal(default, first), "without --data_seed, it is --seed"


def test_the_weights_are_those_of_the_seed(data: Path, tmp_path: Path) -> None:
    """After a step of (almost) no learning rate, of one seed and two orders, they are where they began."""
    found = []
    for of_data in (7, 8):
        options: dict[str, Any] = {
            **OPTIONS,
            "base_hps.eta0": 1e-12,
            "base_hps.warmup_tokens": 0,
            "max_tokens": 512,
            "data_seed": of_data,
        }
        assert run(data, tmp_path / f"{of_data}", seed=1, **options) == 0
        checkpoint = find_checkpoint(folder_of(tmp_path / f"{of_data}"), True)
        assert checkpoint is not None
        found.append(load_full(checkpoint)[0])
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], rtol=0, atol=1e-9) for name in found[0])


def test_the_plan_says_it_and_a_resume_asks_for_it(data: Path, tmp_path: Path, capsys) -> None:
    options = {**OPTIONS, "data_seed": 7}
    assert run(data, tmp_path, stop_after=1, **options) != 0
    plan = json.loads((folder_of(tmp_path) / "plan.json").read_text())
    assert (plan["seed"], plan["data_seed"]) == (3407, 7)
    assert "seed 3407, of the data 7" in describe(Plan.from_dict(plan), None)
    capsys.readouterr()
    assert run(data, tmp_path, resume="auto", **{**options, "data_seed": 8}) == EXIT_BAD_INPUT
    assert "--data_seed: 7 -> 8" in capsys.readouterr().err
    assert run(data, tmp_path, resume="auto", **options) == 0


def test_a_run_of_earlier_releases_had_one_seed_for_both(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, **OPTIONS) == 0
    folder = folder_of(tmp_path)
    parts = {part: json.loads((folder / f"{part}.json").read_text()) for part in ("plan", "model", "numerics")}
    before = {**parts, "plan": {key: value for key, value in parts["plan"].items() if key != "data_seed"}}
    assert known_as(before) == known_as(parts)
    assert dataclasses.replace(Plan.from_dict(before["plan"]), data_seed=1) != Plan.from_dict(parts["plan"])
