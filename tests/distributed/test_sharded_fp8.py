"""--fp8 on the real model: over two processes as on one, and from a checkpoint as without a break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_optimizers import plan_for
from spawn import run_distributed
from tiny_model import ONE_LAYER, ROLE_PLANS, build_model, full, same, snapshot
from torch import nn

from lit_gpt import optim
from lit_gpt.checkpoint import Checkpointer, load_checkpoint
from lit_gpt.checkpoint.layout import step_folder
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.parallel import Runtime, finish_gradients, gradient_sync, start_runtime

CONFIG = ONE_LAYER.replace(n_embd=256, head_dim=128, intermediate_size=256, block_size=16, vocab_size=51)
MICRO_BATCHES = 2


def made(runtime: Runtime, recipe: str | None, optimizer: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(runtime, config=CONFIG, fp8=recipe)
    plan = plan_for(optimizer, ROLE_PLANS, optimizer_args={}, steps=20)
    return model, optim.build(parameter_groups(model, plan), plan)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime, number: int) -> float:
    """One step, in which every rank sees the same tokens: then scales are those of one process."""
    loss = torch.zeros(())
    for i in range(MICRO_BATCHES):
        gradient_sync(model, i == MICRO_BATCHES - 1)
        generator = torch.Generator().manual_seed(2 * number + i)
        tokens = torch.randint(0, CONFIG.vocab_size, (2, 16), generator=generator)
        summed = model(tokens, tokens.roll(-1, 1)).loss / (tokens.numel() * MICRO_BATCHES)
        summed.backward()
        loss += summed.detach()
    finish_gradients(model, runtime)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train(recipe: str | None, optimizer: str) -> tuple[list[float], torch.Tensor]:
    """The losses, and how far all weights moved, in one row."""
    runtime = start_runtime()
    model, made_optimizer = made(runtime, recipe, optimizer)
    before = flat(model)
    losses = [step(model, made_optimizer, runtime, i) for i in range(3)]
    return losses, flat(model) - before


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([full(p).flatten() for p in model.parameters()])


@pytest.mark.parametrize("recipe, optimizer", [("tensorwise", "adamw"), ("rowwise", "muonh")])
def test_two_processes_train_as_one(recipe: str, optimizer: str) -> None:
    losses, moved = train(recipe, optimizer)
    plain, _ = train(None, optimizer)
    assert losses != plain and max(abs(a - b) for a, b in zip(losses, plain)) < 0.1
    for theirs, together in run_distributed(train, 2, recipe, optimizer):
        # Sums over ranks round otherwise in fp32, which can move a number in 8 bits by a step.
        assert theirs == pytest.approx(losses, abs=2e-3)
        assert (together - moved).norm() < 0.1 * moved.norm(), ((together - moved).norm() / moved.norm(), recipe)


def test_a_run_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    """With the same recipe. Without --fp8 the checkpoint loads too: it has the same tensors."""
    runtime = start_runtime()
    model, optimizer = made(runtime, "tensorwise")
    for i in range(2):
        step(model, optimizer, runtime, i)
    saver = Checkpointer(tmp_path, runtime, keep_last=1, async_save=False)
    saver.save(2, model, optimizer, {"tokens": 0})
    found: list[Any] = []
    for recipe in ("tensorwise", None):
        again, loaded = made(runtime, recipe)
        step(again, loaded, runtime, 7)  # what was cast before the load must not be used after it
        load_checkpoint(step_folder(tmp_path, 2), again, loaded, runtime)
        assert same(snapshot(again), snapshot(model))
        found.append((again, loaded))
    for _ in range(2):
        losses = [step(m, o, runtime, 5) for m, o in ((model, optimizer), *found)]
        assert losses[0] == losses[1] != losses[2]
    assert same(snapshot(model), snapshot(found[0][0]))
