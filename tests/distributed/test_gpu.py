"""FSDP2 (nccl) on one GPU and on two equals the plain module in bf16, compiled, recomputed, offloaded; checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_distributed
from tiny_model import CONFIG, build_adamw, build_model, same, snapshot, train_step

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint
from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.parallel import grad_norms, launch, replicas_in_sync, scale_gradients_

pytestmark = pytest.mark.gpu

SIZES = {"n_embd": 128, "head_dim": 64, "n_head": 2, "intermediate_size": 192, "padding_multiple": 64}
GPU_CONFIG = CONFIG.replace(**SIZES, layers=(LayerSpec(),) * 3, attn_sink=False)
EXPERTS = GPU_CONFIG.replace(layers=(LayerSpec(experts=True),) * 3, experts=Experts(4, 2))
CASES: list[dict[str, Any]] = [
    {},
    {"compile": True},
    {"act_ckpt": "full", "compile": True},
    {"act_ckpt": "selective", "compile": True},
    {"act_ckpt": "selective"},
]
EXPERT_CASES = [{"config": EXPERTS, "compile": c, "expert_parallel": p} for c in (False, True) for p in (False, True)]


def train(run: Path, **options: Any) -> dict[str, Any]:
    """Three steps, a save in the background of the next one, a load into a new model."""
    runtime = launch(offloading=options.get("offloading", False))
    options = {"config": GPU_CONFIG, **options}
    model = build_model(runtime, runtime.compute_dtype, **options)
    optimizer = build_adamw(model, "fused")
    losses = [train_step(model, optimizer, runtime, step) for step in range(3)]
    saver = Checkpointer(run / "checkpoints", runtime, keep_last=1)
    saver.save(3, model, optimizer, {})
    saved = snapshot(model, optimizer)
    losses.append(train_step(model, optimizer, runtime, 3))
    saver.close()
    other = build_model(runtime, runtime.compute_dtype, **options)
    other_optimizer = build_adamw(other, "fused")
    load_checkpoint(find_checkpoint(run, True), other, other_optimizer, runtime)
    assert same(snapshot(other, other_optimizer), saved)
    norms_and_scale(other, runtime)
    return {"losses": losses, "device": runtime.device.type, "in_sync": replicas_in_sync(model, runtime)}


def norms_and_scale(model, runtime) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    numel = sum(p.numel() for p in model.parameters())
    assert grad_norms(model.parameters(), runtime).total.item() == pytest.approx(numel**0.5)
    scale_gradients_(model.parameters(), torch.tensor(2.0, device=runtime.device))
    assert grad_norms(model.parameters(), runtime).total.item() == pytest.approx(2 * numel**0.5)


def every_case(folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [train(folder / str(i), **case) for i, case in enumerate(cases)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_case_trains_alike(tmp_path):
    alone = every_case(tmp_path / "alone", CASES)
    (sharded,) = run_distributed(every_case, 1, tmp_path / "sharded", [*CASES, {"offloading": True}], gpu=True)
    # Offloaded weights are drawn by the host's generator, so they start as a run on the CPU does.
    (on_host,) = run_distributed(every_case, 1, tmp_path / "host", [{}])
    expected = [alone[0]["losses"]] * 2 * len(CASES) + [on_host[0]["losses"]]
    for i, (found, losses) in enumerate(zip([*alone, *sharded], expected)):
        assert found["device"] == "cuda" and found["in_sync"], i
        assert found["losses"] == pytest.approx(losses, rel=2e-3), i


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_equal_one(tmp_path):
    (one,) = run_distributed(every_case, 1, tmp_path / "one", CASES, gpu=True)
    for two in run_distributed(every_case, 2, tmp_path / "two", CASES, gpu=True):
        assert all(found["device"] == "cuda" and found["in_sync"] for found in two)
        for i, (found, expected) in enumerate(zip(two, one)):
            assert found["losses"] == pytest.approx(expected["losses"], rel=2e-3), i


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_experts_on_two_gpus(tmp_path):
    """Weights that travel and tokens that do; near a tie a token may change its expert in bf16."""
    for cases in run_distributed(every_case, 2, tmp_path, EXPERT_CASES, gpu=True):
        for found in cases:
            assert found["in_sync"]
            assert found["losses"] == pytest.approx(cases[0]["losses"], rel=1e-2)
