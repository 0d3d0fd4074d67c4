"""Optimizers over shards equal optimizers over whole parameters, on 1 to 4 processes and on two nodes.

One start of four processes does it all: meshes of the first 1, 2, 3 and 4 of them, and the mesh of
two nodes (2 x 2) that the launcher makes, with which the real model trains and is saved too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import NAMES, Bag, build, gradients, options, plan_for
from spawn import run_distributed
from tiny_model import build_model as build_tiny
from tiny_model import full, same, snapshot, train_step
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.groups import parameter_groups
from lit_gpt.parallel import Runtime, launch, replicas_in_sync

STEPS, SKIPPED = 4, 2
# Cases beyond the optimizers themselves: blocks of rows, and products in bf16.
ARGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, options(name)) for name in NAMES},
    "split": ("muonh", {"ns_dtype": "fp32", "split_maps": True, "split_heads": True}),
    "bf16": ("muon", {}),
}


def shard(whole: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """As FSDP2 does: by rows over the last axis of the mesh."""
    if mesh is None:
        return whole
    placements = [Replicate(), Shard(0)][-mesh.ndim :]
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def sharded_bag(mesh: DeviceMesh | None) -> Bag:
    bag = Bag()
    for name, p in list(bag.named_parameters()):
        if p.role != "vector":  # type: ignore[attr-defined]
            part = nn.Parameter(shard(p.detach(), mesh))
            vars(part).update(vars(p))
            bag.register_parameter(name, part)
    return bag


def train(case: str, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Some steps, one of them skipped because gradients are not finite; full weights and state."""
    name, args = ARGS[case]
    bag = sharded_bag(mesh)
    optimizer: Any = build(bag, name, **args)
    for step in range(STEPS):
        skip = step == SKIPPED
        for key, g in gradients(step).items():
            p, whole = bag.get_parameter(key), torch.full_like(g, torch.nan) if skip else g * 4
            p.grad = shard(whole, mesh) if isinstance(p, DTensor) else whole
        before = parts(bag, optimizer) if skip else []
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(torch.nan if skip else 4.0), torch.tensor(float(skip))
        optimizer.step()
        after = parts(bag, optimizer) if skip else []
        assert all(torch.equal(a, b) for a, b in zip(after, before)), f"{case}: a skipped step changes nothing"
    return snapshot(bag, optimizer)


def parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of what this rank holds of weights and state."""
    tensors = [t for p in model.parameters() for t in (p.detach(), *optimizer.state[p].values())]
    return [(t.to_local() if isinstance(t, DTensor) else t).clone() for t in tensors]


def tiny(name: str, runtime: Runtime) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_tiny(runtime)
    plan = plan_for(name, optimizer_args=options(name))
    return model, OPTIMIZERS.load(name).build(parameter_groups(model, plan), plan)


def train_tiny(name: str, runtime: Runtime, folder: Path) -> dict[str, Tensor]:
    """The real model for three steps; saves after the second, loads that, and takes the third again."""
    model, optimizer = tiny(name, runtime)
    for step in range(2):
        train_step(model, optimizer, runtime, step)
    saver = Checkpointer(folder / name / "checkpoints", runtime, keep_last=1, async_save=False)
    saver.save(2, model, optimizer, {})
    saver.close()
    saved = snapshot(model, optimizer)
    train_step(model, optimizer, runtime, 2)
    again, its = tiny(name, runtime)
    load_checkpoint(find_checkpoint(folder / name, True), again, its, runtime)  # type: ignore[arg-type]
    assert same(snapshot(again, its), saved), f"{name}: loading changes nothing"
    train_step(again, its, runtime, 2)
    assert same(snapshot(again, its), snapshot(model, optimizer)), f"{name}: the next step is the same"
    assert replicas_in_sync(model, runtime)
    return {f"saved {key}": value for key, value in saved.items()} | snapshot(model, optimizer)


def worker(folder: Path) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Mesh -> case -> full tensors; nothing for meshes that this rank is not in."""
    runtime = launch()
    meshes = {f"{n} ranks": DeviceMesh("cpu", torch.arange(n)) for n in (1, 2, 3, 4)}
    meshes = {key: m for key, m in meshes.items() if runtime.rank < m.size()} | {"two nodes": runtime.mesh}
    found = {key: {case: train(case, mesh) for case in ARGS} for key, mesh in meshes.items()}
    return found | {"model": {name: train_tiny(name, runtime, folder) for name in NAMES}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, dict[str, Tensor]]]]:
    return run_distributed(worker, 4, folder, nodes=2)


@pytest.mark.parametrize("mesh", ["1 ranks", "2 ranks", "3 ranks", "4 ranks", "two nodes"])
def test_sharded_equals_whole(ranks: list[dict], mesh: str) -> None:
    expected = {case: train(case, None) for case in ARGS}
    for found in (rank[mesh] for rank in ranks if mesh in rank):
        for case, tensors in expected.items():
            # Power iterations amplify rounding where two singular values are close.
            tolerance = {"bf16": 2e-2, "muonball": 5e-5}.get(case, 2e-6)
            for key, tensor in tensors.items():
                torch.testing.assert_close(
                    found[case][key], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, at=(case, key): f"{at}: {m}"
                )


@pytest.mark.parametrize("name", NAMES)
def test_the_real_model_on_two_nodes_and_on_one_process(ranks: list[dict], folder: Path, name: str) -> None:
    """Four processes train as one does, and one process reads what four saved."""
    runtime = launch()
    model, optimizer = tiny(name, runtime)
    for step in range(3):
        train_step(model, optimizer, runtime, step)
    found = ranks[0]["model"][name]
    assert all(same(rank["model"][name], found) for rank in ranks)
    for key, p in model.named_parameters():
        torch.testing.assert_close(found[key], full(p), rtol=0, atol=0.06 if name == "lion" else 1e-3, msg=key)
    again, its = tiny(name, runtime)
    load_checkpoint(find_checkpoint(folder / name, True), again, its, runtime)  # type: ignore[arg-type]
    read = snapshot(again, its)
    assert same(read, {key: found[f"saved {key}"] for key in read})
