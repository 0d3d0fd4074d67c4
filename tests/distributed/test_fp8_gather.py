"""--fp8_gather: over two and three processes the loss and the weights of weights that travel whole, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_optimizers import plan_for
from spawn import run_distributed
from tiny_model import ONE_LAYER, ROLE_PLANS, build_model, full
from torch import Tensor, nn

from lit_gpt import optim
from lit_gpt.checkpoint import Checkpointer, load_checkpoint
from lit_gpt.checkpoint.layout import step_folder
from lit_gpt.errors import UserError
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.parallel import Runtime, finish_gradients, gradient_sync, start_runtime
from lit_gpt.parallel.fp8_gather import Sent

# Rows of the hidden width are no multiple of three processes, and those of its gate are fewer than three.
CONFIG = ONE_LAYER.replace(n_embd=256, head_dim=128, intermediate_size=256, block_size=16, vocab_size=51)


def made(runtime: Runtime, gather: bool, optimizer: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(runtime, config=CONFIG, fp8="tensorwise", fp8_gather=gather)
    plan = plan_for(optimizer, ROLE_PLANS, optimizer_args={}, steps=20)
    return model, optim.build(parameter_groups(model, plan), plan)


def tokens(rank: int, number: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (2, 16), generator=torch.Generator().manual_seed(100 * rank + number))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime, number: int) -> float:
    total = 0.0
    for i in range(2):
        gradient_sync(model, i == 1)
        batch = tokens(runtime.rank, 2 * number + i)
        loss = model(batch, batch.roll(-1, 1)).loss / (2 * batch.numel())
        loss.backward()
        total += loss.item()
    finish_gradients(model, runtime)
    optimizer.step()
    optimizer.zero_grad()
    return total


def evaluated(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits = model.eval()(tokens(0, 99)).logits
    model.train()
    return logits


def train(optimizer: str) -> list[Any]:
    """With whole weights and with those in 8 bits: losses, logits in evaluation between steps and after, weights."""
    runtime, found = start_runtime(), []
    for gather in (False, True):
        model, chosen = made(runtime, gather, optimizer)
        seen = []
        for i in range(3):
            seen += [step(model, chosen, runtime, i), evaluated(model)]
        scaled: list[Any] = [getattr(m, "scaled", None) for m in model.modules()]
        sent = [s for s in scaled if isinstance(s, Sent)]
        assert bool(sent) is gather and all(w.dtype == torch.float8_e4m3fn for s in sent for w in s.whole)
        found.append([*seen, *(full(p) for p in model.parameters())])
    return found


@pytest.mark.parametrize("processes, optimizer", [(2, "adamw"), (3, "muonh")])
def test_nothing_changes_but_what_travels(processes: int, optimizer: str) -> None:
    for whole, sent in run_distributed(train, processes, optimizer):
        for ours, theirs in zip(sent, whole):
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def resumed(folder: str) -> tuple[list[float], list[float]]:
    """Losses of one more step: of the run that was saved, and of one that loaded it after a step of its own."""
    runtime = start_runtime()
    model, optimizer = made(runtime, gather=True)
    step(model, optimizer, runtime, 0)
    saver = Checkpointer(Path(folder), runtime, keep_last=1, async_save=False)
    saver.save(1, model, optimizer, {"tokens": 0})
    again, loaded = made(runtime, gather=True)
    step(again, loaded, runtime, 7)
    load_checkpoint(step_folder(Path(folder), 1), again, loaded, runtime)
    pairs = [(m, o) for m, o in ((model, optimizer), (again, loaded))]
    first, second = ([step(m, o, runtime, i) for i in (1, 2)] for m, o in pairs)
    return first, second


def test_checkpoints_hold_the_weights(tmp_path: Path) -> None:
    for first, second in run_distributed(resumed, 2, str(tmp_path)):
        assert first == second


def test_where_nothing_travels_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"--fp8_gather true .* needs torchrun"):
        made(start_runtime(), gather=True)
