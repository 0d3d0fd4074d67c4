"""Layers and models with experts, small, in float64 unless a test says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.scaling.base import Multipliers

N, WIDTH, VOCAB, LENGTH = 16, 64, 61, 12


def config(experts: Experts, kind: Any = "swiglu", layers: int = 2, **fields: Any) -> ModelConfig:
    sizes = {"n_embd": N, "n_head": 2, "head_dim": 8, "n_kv_head": 1, "intermediate_size": WIDTH}
    specs = (LayerSpec(ffn=kind, experts=True),) * layers
    fields = {"layers": specs, "vocab_size": VOCAB, "block_size": LENGTH, **sizes, **fields}
    return ModelConfig(family="test", depth=layers, experts=experts, **fields)


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that routing is far from even."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(1 + 0.1 * noise if p.ndim == 1 else 1.5 * noise * p.shape[-1] ** -0.5)


def layer(experts: Experts, kind: Any = "swiglu", multiplier: float = 1.0) -> MixtureOfExperts:
    made = MixtureOfExperts(config(experts, kind), 0, multiplier).double()
    fill(made)
    return made


def model(experts: Experts, seed: int = 0, **fields: Any) -> GPT:
    made = GPT(config(experts, **fields), Multipliers(), compute_dtype=torch.float64, residual_dtype=torch.float64)
    fill(made.double(), seed)
    return made


def inputs(rows: int = 2, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, N, generator=generator, dtype=torch.float64)


def by_token(moe: MixtureOfExperts, x_ND: torch.Tensor) -> torch.Tensor:
    """Routed experts of a token-choice layer without capacity, one token and one expert after the other."""
    e, rows = moe.experts, []
    for x in x_ND:
        logits = moe.router.weight.double() @ x * moe.multiplier
        scores = logits.sigmoid() if e.gate == "sigmoid" else logits.softmax(-1)
        chosen = sorted(range(e.routed), key=lambda i: (-scores[i].item(), i))[: e.active]
        gates = scores[chosen] if e.gate == "all" else scores[chosen] / scores[chosen].sum()
        gates = gates.sqrt() if e.sqrt_gate else gates
        rows.append(sum(g * expert(moe, i, x) for g, i in zip(gates, chosen)))
    return torch.stack(rows)


def expert(moe: MixtureOfExperts, i: int, x: torch.Tensor) -> torch.Tensor:
    """One expert on one token or more."""
    h = x @ moe.up[i].mT
    if moe.kind == "relu2":
        return h.relu().square() @ moe.down[i].mT
    gate, up = h.chunk(2, dim=-1)
    if moe.kind == "oss_swiglu":
        gate, up = gate.clamp(max=7), up.clamp(-7, 7) + 1
        return (gate * torch.sigmoid(1.702 * gate) * up) @ moe.down[i].mT
    return (gate * gate.sigmoid() * up) @ moe.down[i].mT


def with_gate(experts: Experts, gate: Any, sqrt_gate: bool) -> Experts:
    return replace(experts, gate=gate, sqrt_gate=sqrt_gate)
