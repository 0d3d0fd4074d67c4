"""Gloo groups have one thread each, since two of one group free the same memory (lit_gpt/parallel/gloo.py)."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from spawn import run_distributed
from torch.distributed.tensor import Shard, distribute_tensor

from lit_gpt.parallel import start_runtime
from lit_gpt.parallel.gloo import INTERFACES


def groups(interfaces: str) -> tuple[list[tuple[int, int]], bool]:
    """Threads and devices of the run's group, of its mesh's and of another one; whether gathers over them are right."""
    os.environ[INTERFACES] = interfaces
    runtime = start_runtime()
    assert runtime.mesh is not None
    made = [dist.group.WORLD, runtime.mesh.get_group(), dist.new_group(backend="gloo")]
    backends = [cast(Any, group)._get_backend(torch.device("cpu")) for group in made]
    assert all(isinstance(backend, dist.ProcessGroupGloo) for backend in backends)
    whole = torch.arange(15.0).view(5, 3)
    parts = [distribute_tensor(whole + n, runtime.mesh, [Shard(0)], src_data_rank=None) for n in range(100)]
    gathered = all(torch.equal(part.full_tensor(), whole + n) for n, part in enumerate(parts))
    return [(backend.options._threads, len(backend.options._devices)) for backend in backends], gathered


@pytest.mark.parametrize(("interfaces", "devices"), [("", 1), ("lo", 1), ("lo,lo", 2)])
def test_a_group_has_one_thread(interfaces: str, devices: int) -> None:
    """However many interfaces the environment names, each of which has two threads otherwise."""
    assert run_distributed(groups, 2, interfaces) == [([(1, devices)] * 3, True)] * 2
