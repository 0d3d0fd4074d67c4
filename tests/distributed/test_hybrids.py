"""What layers share travels through FSDP2, activation checkpointing and compiled blocks; shared blocks too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from controls import FP32_BOUNDS, tensors_near
from replicas import replicas_in_sync
from spawn import run_distributed
from tiny_model import LENGTH, VOCAB, build_adamw, build_model, snapshot, train_step

from lit_gpt.architectures import build
from lit_gpt.config.model import ModelConfig
from lit_gpt.parallel import start_runtime

OPTIONS = {"mamba": {"d_state": 4}, "gdn": {"heads": 2, "key_dim": 8}}
CASES: list[dict[str, Any]] = [
    {"family": "sambay", "act_ckpt": "full"},
    {"family": "gdny"},
    {"family": "sambaymlp", "act_ckpt": "selective"},
    {"family": "transformer", "share_per_layer": 2, "share_group": 2},
    # With outputs at zero, the branches would hardly do anything in three steps.
    {"family": "baseline", "act_ckpt": "selective", "zero_output": False},
]


def small(family: str, **changes: Any) -> ModelConfig:
    config = build(family, 8, aspect_ratio=4, block_size=LENGTH, window=5)
    mixers = {spec.mixer for spec in config.layers}
    options = {name: given for name, given in OPTIONS.items() if name in mixers}
    heads = {"n_head": 4, "n_kv_head": 2, "head_dim": 8}
    return config.replace(vocab_size=VOCAB, padding_multiple=17, mixer_options=options, **heads, **changes)


def train(family: str, act_ckpt: str = "off", compile: bool = False, **changes: Any) -> dict[str, Any]:
    runtime = start_runtime()
    model = build_model(runtime, config=small(family, **changes), act_ckpt=act_ckpt, compile=compile)
    # torch's plans the sharding of each list for seconds. With this eps, above the root of the second moments, steps
    # are about proportional to gradients: a smaller one turns the rounding of a gradient near zero into a part of a
    # step, of single tensors up to 7e-3 by the instruction set.
    optimizer = build_adamw(model, "fused", eps=1.0)
    start = snapshot(model)
    losses = [train_step(model, optimizer, runtime, step) for step in range(3)]
    moved = {name: value - start[name] for name, value in snapshot(model).items()}
    return {"losses": losses, "in_sync": replicas_in_sync(model, runtime), "moved": moved}


def every_case() -> list[dict[str, Any]]:
    return [train(**case) for case in CASES]


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["in_sync"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    tensors_near(found, expected, FP32_BOUNDS, "two ranks")


def test_two_ranks_equal_one():
    alone = every_case()
    for rank in run_distributed(every_case, 2):
        for found, expected in zip(rank, alone):
            agree(found, expected)


def test_compiled_blocks_equal_eager_ones(monkeypatch):
    """Captured by dynamo and split by autograd; machine code is not generated here."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend="aot_eager", **options))
    layers = tuple(replace(s, shares=s.shares and s.shares - 4) for s in build("sambay", 8).layers[4:])
    second_half = {"family": "sambay", "depth": 4, "layers": layers}  # what shares and what reads
    agree(train(**second_half, compile=True, act_ckpt="full"), train(**second_half))
