"""Clipping of single gradients against float64, on one process and on shards."""

from __future__ import annotations

import pytest
import torch
from small_optimizers import Bag, gradients
from spawn import run_distributed
from test_sharded import shard, sharded_bag
from tiny_model import full
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lit_gpt.parallel import clip_each_, start_runtime

LIMITS = {"local": 3.0, "elementwise": 0.5}  # each leaves some gradients as they are


def expected(key: str, kind: str, limit: float) -> Tensor:
    g = gradients(0)[key].double()
    if kind == "elementwise":
        return g.clamp(-limit, limit)
    parts = g.unbind() if key == "experts" else [g]
    parts = [part * min(1.0, limit / part.norm().item()) for part in parts]
    return torch.stack(list(parts)) if key == "experts" else parts[0]


def clipped(kind: str, mesh: DeviceMesh | None) -> Bag:
    bag = sharded_bag(mesh)
    for key, g in gradients(0).items():
        p = bag.get_parameter(key)
        p.grad = shard(g, mesh) if isinstance(p, DTensor) else g
    clip_each_(bag.parameters(), kind, LIMITS[kind], start_runtime())
    return bag


def wrong(kind: str) -> list[str]:
    """Gradients that are not as float64 has them, on this many processes."""
    bag, found = clipped(kind, start_runtime().mesh), []
    for key, p in bag.named_parameters():
        if not torch.allclose(full(p.grad).double(), expected(key, kind, LIMITS[kind]), rtol=1e-5, atol=1e-6):
            found.append(key)
    return found


@pytest.mark.parametrize("kind", LIMITS)
def test_every_gradient_is_clipped_by_itself(kind: str) -> None:
    assert wrong(kind) == []
    changed = {
        key: not torch.equal(expected(key, kind, LIMITS[kind]), gradients(0)[key].double()) for key in gradients(0)
    }
    assert changed["wide"] and (kind == "elementwise" or not changed["gain"])


@pytest.mark.parametrize("kind", LIMITS)
def test_on_shards_too(kind: str) -> None:
    assert run_distributed(wrong, 2, kind) == [[], []]
