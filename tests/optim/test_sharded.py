"""Optimizers over shards equal optimizers over whole parameters, on 1 to 4 processes and on two nodes.

One start of four processes does it all: meshes of the first 1, 2, 3 and 4 of them, and the mesh of
two nodes (2 x 2) that the launcher makes, with which the real model trains and is saved too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from replicas import replicas_in_sync
from small_optimizers import NAMES, Bag, build, gradients, options, plan_for
from spawn import run_distributed
from tiny_model import ONE_LAYER, full, same, snapshot, train_step
from tiny_model import build_model as build_tiny
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_gpt import optim
from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint
from lit_gpt.optim.engine import matrix_batches
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.optim.engine.matrix_batches import local
from lit_gpt.parallel import Runtime, start_runtime

STEPS, SKIPPED = 3, 1
SAVED = ("hadam", "muonball", "muonh", "normuon")  # every kind of state there is
# Cases beyond the optimizers themselves: blocks of rows, as many batches as can be, and products in bf16.
ARGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, options(name)) for name in NAMES},
    "split": ("muonh", {"ns_dtype": "fp32", "split_maps": True, "split_heads": True}),
    "batches": ("normuon", {"ns_dtype": "fp32"}),
    "columns": ("normuon", {"ns_dtype": "fp32", "normuon_of": "longer"}),
    "bf16": ("muon", {}),
    "int8": ("muonh", {"ns_dtype": "fp32", "state": "int8"}),
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


def train(case: str, mesh: DeviceMesh | None) -> tuple[Bag, torch.optim.Optimizer]:
    """Some steps, one of them skipped because gradients are not finite."""
    name, args = ARGS[case]
    bag = sharded_bag(mesh)
    with mock.patch.object(matrix_batches, "BATCH_ELEMENTS", 1 if case == "batches" else matrix_batches.BATCH_ELEMENTS):
        optimizer: Any = build(bag, name, **args)
    for step in range(STEPS):
        skip = step == SKIPPED
        for key, g in gradients(step).items():
            p, whole = bag.get_parameter(key), torch.full_like(g, torch.nan) if skip else g * 4
            p.grad = shard(whole, mesh) if isinstance(p, DTensor) else whole
        before = {key: local(t).clone() for key, t in tensors(bag, optimizer).items()}
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(torch.nan if skip else 4.0), torch.tensor(float(skip))
        optimizer.step()
        unchanged = all(torch.equal(local(t), before[key]) for key, t in tensors(bag, optimizer).items())
        assert unchanged or not skip, f"{case}: a skipped step changes nothing"
    return bag, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and state by name, not copied, not gathered."""
    named = dict(model.named_parameters())
    state = {f"{key}.{k}": t for key, p in named.items() for k, t in optimizer.state[p].items()}
    return {key: p.detach() for key, p in named.items()} | state


@functools.cache
def unsharded(case: str) -> dict[str, Tensor]:
    return tensors(*train(case, None))


def differences(case: str, mesh: DeviceMesh) -> list[str]:
    """Where this rank's part of weights and state is not what the unsharded optimizer has there."""
    # Power iterations amplify rounding where two singular values are close.
    tolerance = {"bf16": 2e-2, "muonball": 5e-5}.get(case, 2e-6)
    whole, found = unsharded(case), []
    for key, t in tensors(*train(case, mesh)).items():
        expected = local(shard(whole[key], mesh)) if isinstance(t, DTensor) else whole[key]
        if t.shape != whole[key].shape or not torch.allclose(local(t), expected, rtol=tolerance, atol=tolerance):
            found.append(f"{case}: {key}")
    return found


def tiny(name: str, runtime: Runtime) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_tiny(runtime, config=ONE_LAYER)
    name, args = ARGS[name]
    plan = plan_for(name, optimizer_args=args)
    return model, optim.build(parameter_groups(model, plan), plan)


def train_tiny(name: str, runtime: Runtime, folder: Path) -> dict[str, Tensor]:
    """The real model for three steps; saves after the second, loads that, and takes the third again."""
    model, optimizer = tiny(name, runtime)
    for step in range(2):
        train_step(model, optimizer, runtime, step)
    saver = Checkpointer(folder / name / "checkpoints", runtime, keep_last=1, async_save=False)
    saver.save(2, model, optimizer, {"tokens": 0})
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


def worker(folder: Path) -> dict[str, Any]:
    """Mesh -> differences, None for a mesh that this rank is not in; and the real model's tensors."""
    runtime = start_runtime()
    meshes: dict[str, Any] = {f"{n} ranks": DeviceMesh("cpu", torch.arange(n)) for n in (1, 2, 3, 4)}
    meshes["two nodes"] = runtime.mesh
    found: dict[str, Any] = {}
    for key, mesh in meshes.items():
        mine = runtime.rank < mesh.size()
        found[key] = [d for case in ARGS for d in differences(case, mesh)] if mine else None
    return found | {"model": {name: train_tiny(name, runtime, folder) for name in SAVED}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return run_distributed(worker, 4, folder, nodes=2)


@pytest.mark.parametrize("mesh", ["1 ranks", "2 ranks", "3 ranks", "4 ranks", "two nodes"])
def test_sharded_equals_whole(ranks: list[dict[str, Any]], mesh: str) -> None:
    inside = [rank[mesh] for rank in ranks if rank[mesh] is not None]
    assert inside == [[]] * (4 if mesh == "two nodes" else int(mesh[0]))


@pytest.mark.parametrize("name", SAVED)
def test_the_real_model_on_two_nodes_and_on_one_process(ranks: list[dict[str, Any]], folder: Path, name: str) -> None:
    """Four processes train as one does, and one process reads what four saved."""
    runtime = start_runtime()
    model, optimizer = tiny(name, runtime)
    for step in range(3):
        train_step(model, optimizer, runtime, step)
    found = ranks[0]["model"][name]
    assert all(same(rank["model"][name], found) for rank in ranks)
    for key, p in model.named_parameters():
        torch.testing.assert_close(found[key], full(p), rtol=0, atol=1e-3, msg=key)
    again, its = tiny(name, runtime)
    load_checkpoint(find_checkpoint(folder / name, True), again, its, runtime)  # type: ignore[arg-type]
    read = snapshot(again, its)
    assert same(read, {key: found[f"saved {key}"] for key in read})


@pytest.mark.parametrize("name", [*NAMES, "int8"])
def test_one_process_saves_and_loads(tmp_path: Path, name: str) -> None:
    train_tiny(name, start_runtime(), tmp_path)
