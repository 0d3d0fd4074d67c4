"""Averages of the weights in checkpoints: across numbers of ranks, taken over in part, and chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_distributed
from tiny_model import build_adamw, build_model, full, same, snapshot, train_step

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_averages, load_checkpoint, load_full, load_weights
from lit_gpt.checkpoint.averages import half_lives, weights_of
from lit_gpt.checkpoint.untrusted import stored_shapes
from lit_gpt.errors import UserError
from lit_gpt.optim.engine.averages import WeightAverages
from lit_gpt.parallel import start_runtime

HALF_LIVES = (200, 3000)


def parts(half_lives: Sequence[int]) -> tuple[Any, Any, Any, WeightAverages]:
    runtime = start_runtime()
    model = build_model(runtime)
    return runtime, model, build_adamw(model, "fused"), WeightAverages(model, half_lives)


def newest(run: Path) -> Path:
    path = find_checkpoint(run, True)
    assert path is not None
    return path


def saved(run: Path, half_lives: Sequence[int]) -> dict[str, torch.Tensor]:
    """Three steps, then a checkpoint; everything that is in it, whole."""
    runtime, model, optimizer, averages = parts(half_lives)
    for step in range(3):
        train_step(model, optimizer, runtime, step)
        averages.update(96)
    saver = Checkpointer(run / "checkpoints", runtime, keep_last=1)
    saver.save(3, model, optimizer, {"tokens": 288}, averages.tensors())
    saver.close()
    return everything(model, optimizer, averages)


def everything(model: Any, optimizer: Any, averages: WeightAverages) -> dict[str, torch.Tensor]:
    return snapshot(model, optimizer) | {f"ema.{name}": full(t) for name, t in averages.tensors().items()}


def loaded(run: Path) -> dict[str, torch.Tensor]:
    runtime, model, optimizer, averages = parts(HALF_LIVES)
    load_checkpoint(newest(run), model, optimizer, runtime, averages.tensors())
    return everything(model, optimizer, averages)


def forked(run: Path) -> tuple[list[int], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A run with one half-life of its parent and a new one: (what it took over, its averages, the weights)."""
    runtime = start_runtime()
    model = build_model(runtime)
    load_weights(run, model, runtime)
    averages = WeightAverages(model, (3000, 9000))
    taken = load_averages(newest(run), averages.tensors(), runtime)
    return taken, {name: full(t) for name, t in averages.tensors().items()}, snapshot(model)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, run_distributed(saved, 2, folder, HALF_LIVES)[0]


def test_two_to_four_to_one(run):
    folder, expected = run
    assert not same({"a": expected["ema.200.wte.weight"]}, {"a": expected["wte.weight"]})
    for found in [loaded(folder), *run_distributed(loaded, 4, folder, nodes=2)]:
        assert same(found, expected)


def test_a_fork_takes_over_what_it_shares(run):
    folder, expected = run
    for taken, averages, weights in [forked(folder), *run_distributed(forked, 2, folder)]:
        assert taken == [3000]
        for name, value in weights.items():
            assert torch.equal(averages[f"3000.{name}"], expected[f"ema.3000.{name}"])
            assert torch.equal(averages[f"9000.{name}"], value) and torch.equal(value, expected[name])


def test_other_averages_are_another_run(run):
    runtime, model, optimizer, averages = parts((200,))
    with pytest.raises(UserError, match=r"not part of this run: ema\.3000"):
        load_checkpoint(newest(run[0]), model, optimizer, runtime, averages.tensors())


def test_one_is_chosen_by_name(run):
    folder, expected = run
    path = newest(folder)
    trained, meta = load_full(path)
    assert "weights" not in meta and all(torch.equal(trained[name], expected[name]) for name in trained)
    for spelt in ("ema_3k", "ema_3000", "3k"):
        found, meta = load_full(path, spelt)
        assert meta["weights"] == "ema_3k" and found.keys() == trained.keys()
        assert all(torch.equal(found[name], expected[f"ema.3000.{name}"]) for name in found)
    for wrong in ("ema_1B", "ema_", "best", "ema_1e999"):
        with pytest.raises(UserError, match=rf"no average '{wrong}'. It has ema_200, ema_3k; without --weights"):
            load_full(path, wrong)


def test_buffers_are_those_of_the_trained_weights():
    names = ["model.a", "model.bias", "ema.5.a", "ema.50.a", "ema.x.a", "optim.a.step"]
    assert half_lives(names) == [5, 50]
    assert weights_of(names, 5) == {"a": "ema.5.a", "bias": "model.bias"}
    assert weights_of(names, None) == {"a": "model.a", "bias": "model.bias"}


def test_without_averages_nothing_is_added(tmp_path):
    saved(tmp_path, ())
    path = newest(tmp_path)
    assert {name.partition(".")[0] for name in stored_shapes(path)} == {"model", "optim"}
    with pytest.raises(UserError, match="It has none, since it was trained without --ema"):
        load_full(path, "ema_1B")
