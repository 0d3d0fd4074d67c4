"""A step of a model with experts is the same on 1, 2 and 4 processes, and for any split into micro-batches; its
checkpoints hold wherever experts are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from replicas import replicas_in_sync
from spawn import run_distributed
from tiny_model import CONFIG, LENGTH, VOCAB, build_adamw, build_model, same, snapshot

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint
from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.train.step import train_step

ROWS, STEPS = 12, 2
GLOBAL = Experts(2, 3, aux_gamma=0.2, global_aux=True, exact_aux=True, router_z_loss=0.01, bias_rate=0.01)
CASES: list[tuple[Experts, dict[str, Any]]] = [
    (GLOBAL, {}),
    (replace(GLOBAL, shared=True, sqrt_gate=True, aux_style="entropy"), {}),  # 5 experts: uneven shards
    (Experts(2, 3, aux_style="switch_seq", aux_gamma=0.2), {"act_ckpt": "full"}),
]
FOUR: list[tuple[Experts, dict[str, Any]]] = [(replace(GLOBAL, top_k=2), {})]  # of 3 processes one has none


def built(runtime: Runtime, experts: Experts, **options: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    specs = tuple(LayerSpec(window=spec.window, experts=True) for spec in CONFIG.layers)
    config = CONFIG.replace(layers=specs, experts=experts, intermediate_size=18)
    model = build_model(runtime, config=config, **options)
    return model, build_adamw(model, "fused")  # torch's plans the sharding of each list for seconds


def global_batch(step: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))


def train(experts: Experts, micro_batches: int, **options: Any) -> dict[str, Any]:
    """Steps on the same global batches, with so many micro-batches on each rank."""
    runtime = start_runtime()
    model, optimizer = built(runtime, experts, **options)
    losses, norms, routing = [], [], []
    for step in range(STEPS):
        tokens = global_batch(step).numpy()
        mine = tokens.reshape(runtime.world_size, micro_batches, -1, LENGTH)[runtime.rank]
        parts = [SimpleNamespace(tokens=t, targets=t) for t in mine]
        result = train_step(model, optimizer, parts, micro_batches, tokens.size, runtime, grad_clip=1.0)
        losses.append(runtime.sum(result.loss).item())
        norms.append(torch.stack(result.norms[:3]))
        routing.append(runtime.sum(result.routing))
    return {
        "losses": losses,
        "norms": torch.stack(norms),
        "routing": torch.stack(routing),
        "weights": snapshot(model),
        "buffers": dict(model.named_buffers()),
        "in_sync": replicas_in_sync(model, runtime),
    }


def every_case(
    micro_batches: int, parallel: tuple[bool, ...] = (False,), cases: list[tuple[Experts, dict[str, Any]]] = CASES
) -> list[dict[str, Any]]:
    """Every case, with weights that travel and then, where asked for, with tokens that do."""
    return [train(experts, micro_batches, expert_parallel=p, **options) for p in parallel for experts, options in cases]


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    return every_case(1)


def agree(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["in_sync"]
        torch.testing.assert_close(mine["losses"], theirs["losses"], rtol=1e-5, atol=0)
        torch.testing.assert_close(mine["norms"], theirs["norms"], rtol=1e-4, atol=0)
        torch.testing.assert_close(mine["routing"], theirs["routing"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["buffers"], theirs["buffers"])
        # Adam turns the rounding of a gradient near zero into a part of a step, here 1e-2 long.
        torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-4, atol=1e-4)


def test_any_split_into_micro_batches(alone):
    agree(every_case(4), alone)


@pytest.mark.parametrize(("world_size", "nodes", "micro_batches"), [(2, 1, 2), (4, 2, 1)])
def test_several_processes_equal_one(alone, world_size, nodes, micro_batches):
    for found in run_distributed(every_case, world_size, micro_batches, (False, True), nodes=nodes):
        agree(found, [*alone, *alone])


def test_a_process_without_experts():
    alone = every_case(1, cases=FOUR)
    for found in run_distributed(every_case, 3, 1, (False, True), FOUR):
        agree(found, [*alone, *alone])


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {**snapshot(model, optimizer), **{name: b.clone() for name, b in model.named_buffers()}}


def loaded(run: Path, runtime: Runtime, **options: Any) -> dict[str, Any]:
    """A fresh model after load_checkpoint: its state, and its logits of one batch."""
    model, optimizer = built(runtime, CASES[1][0], **options)
    load_checkpoint(find_checkpoint(run, True), model, optimizer, runtime)
    found = state(model, optimizer)
    with torch.no_grad():
        return {"state": found, "logits": model(global_batch(9)).logits}


def move(run: Path) -> list[dict[str, Any]]:
    """A step, then a save, with and without expert parallelism; each loaded both ways."""
    runtime, found = start_runtime(), []
    for saves in (True, False):
        model, optimizer = built(runtime, CASES[1][0], expert_parallel=saves)
        mine = global_batch(0).numpy().reshape(runtime.world_size, -1, LENGTH)[runtime.rank]
        batch = SimpleNamespace(tokens=mine, targets=mine)
        train_step(model, optimizer, [batch], 1, ROWS * LENGTH, runtime, grad_clip=1.0)
        saver = Checkpointer(run / str(saves) / "checkpoints", runtime, keep_last=1, async_save=False)
        saver.save(1, model, optimizer, {"tokens": 0})
        saver.close()
        saved = state(model, optimizer)
        for loads in (False, True):
            found.append(loaded(run / str(saves), runtime, expert_parallel=loads) | {"saved": saved})
    return found


def test_checkpoints_move_between_expert_parallelism_and_none(tmp_path):
    """5 experts: 3 on one process, 2 on the other."""
    ranks = run_distributed(move, 2, tmp_path)
    for i, saves in enumerate(("True", "False")):
        alone = loaded(tmp_path / saves, start_runtime())
        for found in (each for cases in ranks for each in cases[2 * i : 2 * i + 2]):
            assert same(found["state"], found["saved"]) and same(found["saved"], alone["state"])
            torch.testing.assert_close(found["logits"], alone["logits"])
