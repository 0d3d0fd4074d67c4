"""Checkpoints across numbers of ranks: 2 -> 4 (two nodes) -> 1, with the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from replicas import replicas_in_sync
from spawn import run_distributed
from tiny_model import build_adamw, build_model, same, snapshot, train_step

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, list_checkpoints, load_checkpoint, load_weights
from lit_gpt.parallel import start_runtime

KINDS = ("foreach", "fused")  # optimizer state from the first step, or from the start


def save(run: Path) -> dict[str, Any]:
    """Three steps with a save after each, training on while it is written."""
    runtime, states = start_runtime(), {}
    for kind in KINDS:
        model = build_model(runtime)
        optimizer = build_adamw(model, kind)
        saver = Checkpointer(run / kind / "checkpoints", runtime, keep_last=2)
        for step in range(3):
            train_step(model, optimizer, runtime, step)
            saver.save(step + 1, model, optimizer, {"tokens": step})
        states[kind] = snapshot(model, optimizer)
        states[kind + " next loss"] = train_step(model, optimizer, runtime, 3)
        saver.close()
    failing_writer(run, runtime, model, optimizer)
    return states


def failing_writer(run: Path, runtime, model, optimizer) -> None:
    """A disk that is full on one rank is a failed save on both, and harms nothing published."""
    saver = Checkpointer(run / "fused" / "checkpoints", runtime, keep_last=2)
    if runtime.rank == 1:
        saver._write = full_disk
    else:
        saver._write = lambda staged, tmp: tmp.mkdir()
    saver.save(4, model, optimizer, {"tokens": 0})
    assert not saver.wait()
    saver.close()


def full_disk(staged, tmp) -> None:
    raise OSError(28, "No space left on device")


def load_and_save(run: Path, again: Path) -> dict[str, Any]:
    """Load into a fresh model and optimizer; save at once, to a new run."""
    runtime, states = start_runtime(), {}
    for kind in KINDS:
        model = build_model(runtime)
        optimizer = build_adamw(model, kind)
        parameters = list(model.parameters())
        path = find_checkpoint(run / kind, True)
        states[kind + " meta"] = load_checkpoint(path, model, optimizer, runtime)
        assert all(a is b for a, b in zip(parameters, model.parameters()))
        assert replicas_in_sync(model, runtime)
        states[kind] = snapshot(model, optimizer)
        saver = Checkpointer(again / kind / "checkpoints", runtime, keep_last=1, async_save=False)
        saver.save(3, model, optimizer, {"tokens": 0})
        saver.close()
        states[kind + " next loss"] = train_step(model, optimizer, runtime, 3)
    model = build_model(runtime)
    load_weights(run / "fused", model, runtime)
    states["weights only"] = snapshot(model)
    return states


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Path, Path]:
    first, second = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("four")
    saved = run_distributed(save, 2, first)
    return saved, run_distributed(load_and_save, 4, first, second, nodes=2), first, second


def test_two_to_four_to_one(runs, tmp_path):
    saved, loaded, _, second = runs
    on_one = load_and_save(second, tmp_path)
    for kind in KINDS:
        expected = saved[0][kind]
        assert "wte.weight.exp_avg" in expected and "norm.weight.step" in expected
        for found in [saved[1], *loaded, on_one]:
            assert same(found[kind], expected), kind
            assert found[kind + " next loss"] == pytest.approx(saved[0][kind + " next loss"], rel=1e-5)
        assert loaded[0][kind + " meta"] == {"tokens": 2, "version": 1, "step": 3}
    for found in [*loaded, on_one]:
        weights = found["weights only"]
        assert same(weights, {name: saved[0]["fused"][name] for name in weights})


def test_a_failed_save_keeps_what_was_published(runs):
    folder = runs[2] / "fused" / "checkpoints"
    assert [path.name for path in list_checkpoints(folder)] == ["step-000002", "step-000003"]
    assert not list(folder.glob(".tmp-*"))


def test_one_process_under_torchrun(tmp_path):
    """Its mesh of one rank needs no collectives of the checkpoint; any number can read the result."""
    (found,) = run_distributed(save_alone, 1, tmp_path)
    runtime = start_runtime()
    model = build_model(runtime)
    optimizer = build_adamw(model)
    load_checkpoint(find_checkpoint(tmp_path, True), model, optimizer, runtime)
    assert same(snapshot(model, optimizer), found)


def save_alone(run: Path) -> dict[str, torch.Tensor]:
    runtime = start_runtime(offloading=True)
    model = build_model(runtime, offloading=True)
    optimizer = build_adamw(model)
    train_step(model, optimizer, runtime, 0)
    saver = Checkpointer(run / "checkpoints", runtime, keep_last=1)
    saver.save(1, model, optimizer, {"tokens": 0})
    saver.close()
    return snapshot(model, optimizer)
