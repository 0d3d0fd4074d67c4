"""Joining a run: defaults for one process, and what a person can get wrong."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric.accelerators import cuda
from lightning_fabric.utilities.rank_zero import rank_zero_info
from replicas import replicas_in_sync
from tiny_model import build_model

from lit_gpt.errors import UserError
from lit_gpt.parallel import finish_gradients, gradient_sync, shard_group, start_runtime
from lit_gpt.utils.launcher import world_size


def test_one_process_needs_no_process_group():
    runtime = start_runtime(precision="fp32")
    assert (runtime.rank, runtime.world_size, runtime.is_main, runtime.mesh) == (0, 1, True, None)
    assert runtime.compute_dtype == torch.float32 and start_runtime(precision="bf16").compute_dtype == torch.bfloat16
    value = torch.tensor(3.0, device=runtime.device)
    total = runtime.sum(value)
    assert total == value and total is not value
    runtime.barrier()
    model = build_model(runtime)
    gradient_sync(model, False)
    finish_gradients(model, runtime)
    assert replicas_in_sync(model, runtime)
    assert not torch.distributed.is_initialized()


def test_an_empty_world_size_is_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert start_runtime(precision="fp32").world_size == world_size() == 1


def test_precision_must_be_known():
    with pytest.raises(UserError, match=r"--precision fp16 is unknown.*bf16"):
        start_runtime(precision="fp16")


def test_offloading_needs_torchrun():
    with pytest.raises(UserError, match="torchrun --nproc_per_node 1"):
        start_runtime(offloading=True)


def test_slurm_tasks_without_torchrun_are_refused(monkeypatch):
    """Each would train alone and write to the same folder."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="srun started 4 tasks"):
        start_runtime()


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="started 8 processes on this node, which has 4 GPUs"):
        start_runtime()


def test_shard_groups_divide_the_processes(monkeypatch):
    assert [shard_group(given, 8) for given in (1, 4, 8)] == [1, 4, 8]
    assert (shard_group(None, 1), shard_group(None, 4), shard_group(None, 64)) == (1, 4, 8)  # nodes of 8 GPUs
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shard_group(None, 8) == 2
    with pytest.raises(UserError, match=r"--shard_group 3 does not divide the 8 processes.*: 1, 2, 4, 8"):
        shard_group(3, 8)
    with pytest.raises(UserError, match="--shard_group 2 does not divide the 1 process of"):
        start_runtime(shards=2)


def test_fabric_does_not_advise_tf32(monkeypatch, caplog):
    """fp32 products are the routers'; what else Fabric says is passed on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    with caplog.at_level("INFO"):
        cuda._check_cuda_matmul_precision.__wrapped__(torch.device("cuda"))
        rank_zero_info("heard")
    assert caplog.messages == ["heard"]
