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
from lit_gpt.errors import EXIT_NOT_FINITE
from lit_gpt.model import GPT
from lit_gpt.train import guard
from lit_gpt.train.stopping import EXIT_INTERRUPTED

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
        output = forward(self, tokens, *args, **kwargs)
        steps.losses.append(output.loss.item() / tokens.numel())
        return output._replace(loss=output.loss * (torch.nan if next(count) in steps else 1.0))

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


@pytest.mark.parametrize("log_step", [1, 3, 100])
def test_nothing_but_bad_steps(log_step, data, tmp_path, nan_at, capsys):
    """A run was ended by a log line and not by its steps, without a checkpoint, and with the code of bad input."""
    nan_at.extend(range(3, 99))
    options = {**OPTIONS, "max_tokens": 20 * 512, "max_skips": 4}
    assert run(data, tmp_path, log_step=log_step, save_step=2, keep_last=9, **options) == EXIT_NOT_FINITE
    error = capsys.readouterr().err.partition("error: ")[2]
    assert re.match(
        r"Steps 3 to 6 were skipped one after the other \(--max_skips 4\): in step 6 the gradients of role embedding, "
        r".*vector were not finite\. The weights are those after step 2\. The checkpoint of step 8 is saved, .*Lower",
        error.replace("lower", "Lower"),
    )
    checkpoints = folder_of(tmp_path) / "checkpoints"
    assert max(path.name for path in checkpoints.iterdir()) == "step-000008", "read every 4 steps"
    two, eight = tensors(checkpoints / "step-000002"), tensors(checkpoints / "step-000008")
    assert all(torch.equal(two[name], eight[name]) for name in two)
    summary = json.loads((folder_of(tmp_path) / "summary.json").read_text())
    assert (summary["finished"], summary["interrupted"]) == (False, False)


def test_a_run_that_heals_after_its_limit_is_ended_all_the_same(data, tmp_path, nan_at):
    """The weights are those at the limit, however late the count is read; a resumed run counts from zero."""
    nan_at.extend([3, 4, 5])
    options = {**OPTIONS, "max_tokens": 8 * 512, "max_skips": 3, "save_step": 1, "keep_last": 9}
    assert run(data, tmp_path, **options) == EXIT_NOT_FINITE
    checkpoints = folder_of(tmp_path) / "checkpoints"
    two, six = tensors(checkpoints / "step-000002"), tensors(checkpoints / "step-000006")
    assert all(torch.equal(two[name], six[name]) for name in two)
    assert run(data, tmp_path, resume="auto", **options) == 0


def test_the_count_goes_on_after_a_resume(data, tmp_path, nan_at):
    nan_at.extend(range(3, 99))
    options = {**OPTIONS, "max_tokens": 20 * 512, "max_skips": 5}
    assert run(data, tmp_path, stop_after=4, **options) == EXIT_INTERRUPTED
    assert run(data, tmp_path, resume="auto", **options) == EXIT_NOT_FINITE
    assert (folder_of(tmp_path) / "checkpoints" / "step-000010").exists()


def test_bad_steps_to_the_very_end(data, tmp_path, nan_at, capsys):
    """The next start called such a run finished, with code 0, and so did its summary."""
    nan_at.extend(range(3, 99))
    options = {**OPTIONS, "max_tokens": 6 * 512, "max_skips": 4}
    assert run(data, tmp_path, **options) == EXIT_NOT_FINITE
    assert "The checkpoint of step 6 is saved, and the budget of tokens is spent." in capsys.readouterr().err
    assert json.loads((folder_of(tmp_path) / "summary.json").read_text())["finished"] is False
    assert run(data, tmp_path, resume="auto", **options) == EXIT_NOT_FINITE
    assert "its last steps were skipped" in capsys.readouterr().err


def test_an_absurd_learning_rate(data, tmp_path, capsys):
    absurd = {"base_hps__eta0": 1e3, "base_hps__weight_lr_scale": 1e6, "max_skips": 2}
    assert run(data, tmp_path, **absurd, **OPTIONS) == EXIT_NOT_FINITE
    assert "lower --base_hps.eta0" in capsys.readouterr().err


def test_spikes_are_skipped_alike_after_a_resume(data, tmp_path, monkeypatch, capsys):
    """A step ten times above its past moved the weights; nothing could keep it from that."""
    monkeypatch.setattr(guard, "WINDOW", 4)
    forward, count = GPT.forward, itertools.count(1)

    def patched(*args, **kwargs):
        output = forward(*args, **kwargs)
        return output._replace(loss=output.loss * (10.0 if next(count) in (5, 12) else 1.0))

    monkeypatch.setattr(GPT, "forward", patched)
    options = {**OPTIONS, "max_tokens": 14 * 512, "skip_spikes": 6, "save_step": 1, "keep_last": 20}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(data, whole, **options) == 0
    assert (
        "1 of the last 1 steps were spikes, more than 6 sigma above the mean; skipped them (the newest is step 5:"
        in (capsys.readouterr().err)
    )
    count = itertools.count(1)
    assert run(data, parts, stop_after=7, **options) == EXIT_INTERRUPTED
    assert run(data, parts, resume="auto", **options) == 0
    spikes = rows(whole, "metric/skipped_spikes")
    assert spikes == rows(parts, "metric/skipped_spikes") and [s for s, n in spikes.items() if n] == [5, 12]
    assert rows(whole) == rows(parts)
    four, five = (tensors(folder_of(whole) / f"checkpoints/step-00000{i}") for i in (4, 5))
    assert all(torch.equal(four[name], five[name]) for name in four)
