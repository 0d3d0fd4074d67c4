"""Adam-mini's partition against the published one, in float64 numpy, over layers of several kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_optimizers import DECAY, LR, build
from tiny_model import ONE_LAYER

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.model import GPT

GROUPED = ONE_LAYER.replace(n_head=4, n_kv_head=2)
MIXERS = {"attention": GROUPED, "one key head": ONE_LAYER, "deltanet": None, "gla": None, "mamba2": None}
# Heads of queries and keys; every other matrix has a second moment per row.
HEADS = {"attention": {"q": 4, "k": 2}, "one key head": {"q": 2, "k": 1}}


def config_of(kind: str) -> ModelConfig:
    """One layer; those of linear attention are 32 wide, with experts."""
    if (made := MIXERS[kind]) is not None:
        return made
    layer = LayerSpec(mixer=kind, experts=True)
    return ONE_LAYER.replace(
        n_embd=32, layers=(layer,), intermediate_size=16, experts=Experts(2, 2), attn_sink=False, attn_gate=False
    )


def blocks_of(kind: str, name: str, p: np.ndarray, heads: int) -> int:
    """How many second moments the paper's code keeps for a parameter: its Algorithm for Transformers, by names."""
    part = name.removesuffix(".weight").split(".")[-1]
    if name.endswith(".weight") and part in ("q", "k"):
        return HEADS.get(kind, {"q": heads, "k": heads})[part]
    return p.shape[0] if p.ndim > 1 else 1


def train(p: np.ndarray, grads: list[np.ndarray], blocks: int) -> np.ndarray:
    """Adam in float64 with the mean of the squared gradients of each block of rows; experts one by one."""
    if p.ndim == 3 and p.shape[1] > 1:
        return np.stack([train(w, [g[e] for g in grads], w.shape[0]) for e, w in enumerate(p)])
    shape, p = p.shape, p.astype(np.float64).reshape(blocks, -1)
    m, v = np.zeros_like(p), np.zeros((blocks, 1))
    for t, g in enumerate((g.astype(np.float64).reshape(blocks, -1) for g in grads), 1):
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * (g**2).mean(1, keepdims=True)
        p = p * (1 - LR * DECAY) - LR * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    return p.reshape(shape)


@pytest.mark.parametrize("kind", MIXERS)
def test_the_published_partition(kind: str) -> None:
    """Only queries and keys are divided by heads; values shared a second moment in a head, which is not Adam-mini."""
    model = GPT(config_of(kind))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=draw)
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    scales = {name: torch.rand(p.shape[:1], generator=draw).view(-1, *[1] * (p.ndim - 1)) for name, p in start.items()}
    grads = {name: [torch.randn(p.shape, generator=draw) * scales[name] for _ in range(3)] for name, p in start.items()}
    optimizer = build(model, "adam_mini")
    for step in range(3):
        for name, p in model.named_parameters():
            p.grad = grads[name][step].clone()
        optimizer.step()
    heads = getattr(getattr(model.blocks[0].mixer, "qkv", None), "heads", 1)
    for name, p in model.named_parameters():
        expected = train(start[name], [g.numpy() for g in grads[name]], blocks_of(kind, name, start[name], heads))
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=2e-6, err_msg=name)
