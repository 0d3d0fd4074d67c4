"""A step whose gradient is not finite is not taken; a run with nothing else stops and says so."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny_run import folder_of, rows, run

from lit_gpt.checkpoint.load import stored_shapes
from lit_gpt.model import GPT

OPTIONS = {"max_tokens": 6 * 512, "async_save": False, "num_workers": 0}


def tensors(path) -> dict[str, torch.Tensor]:
    """All weights and optimizer state of a checkpoint."""
    state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in stored_shapes(path).items()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


class Steps(list[int]):
    def __init__(self) -> None:
        self.losses: list[float] = []


@pytest.fixture
def nan_at(monkeypatch):
    """Make the loss of some steps NaN, one forward each. `.losses` has what they were, per token."""
    forward, count = GPT.forward, itertools.count(1)
    steps = Steps()

    def patched(self, tokens, *args, **kwargs):
        loss = forward(self, tokens, *args, **kwargs)
        steps.losses.append(loss.item() / tokens.numel())
        return loss * (torch.nan if next(count) in steps else 1.0)

    monkeypatch.setattr(GPT, "forward", patched)
    return steps


def test_one_bad_step_is_skipped(data, tmp_path, nan_at, capsys):
    nan_at.append(3)
    assert run(data, tmp_path, log_step=2, save_step=1, keep_last=9, **OPTIONS) == 0
    assert "1 of the last 2 steps had a non-finite gradient" in capsys.readouterr().err
    checkpoints = folder_of(tmp_path) / "checkpoints"
    two, three, four = (tensors(checkpoints / f"step-00000{i}") for i in (2, 3, 4))
    assert all(torch.equal(two[name], three[name]) for name in two), "neither weights nor momenta"
    assert not torch.equal(three["model.wte.weight"], four["model.wte.weight"])
    assert rows(tmp_path, "metric/skipped_steps") == {1: 0, 2: 0, 4: 1, 6: 0}
    one, two, _, four, five, six = nan_at.losses
    taken = {1: one, 2: two, 4: four, 6: (five + six) / 2}
    assert rows(tmp_path) == pytest.approx(taken), "the mean of the steps that were taken"


def test_nothing_but_bad_steps(data, tmp_path, nan_at, capsys):
    nan_at.extend(range(3, 99))
    assert run(data, tmp_path, log_step=2, save_step=2, **OPTIONS) == 2
    error = capsys.readouterr().err.partition("error: ")[2]
    assert re.match(r"The gradient was not finite in all of the last 2 steps \(up to step 4\).*Lower", error)
    assert [path.name for path in (folder_of(tmp_path) / "checkpoints").iterdir()] == ["step-000002"]
    summary = json.loads((folder_of(tmp_path) / "summary.json").read_text())
    assert (summary["finished"], summary["interrupted"]) == (False, False)


def test_an_absurd_learning_rate(data, tmp_path, capsys):
    assert run(data, tmp_path, base_hps__eta0=1e3, base_hps__weight_lr_scale=1e6, **OPTIONS) == 2
    assert "Lower --base_hps.eta0" in capsys.readouterr().err
