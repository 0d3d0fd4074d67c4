"""Gated DeltaNet (arXiv:2412.06464): the delta rule with a decay per head.

Order: project, short convolution and silu on q, k, v, delta rule on L2-normalised q and k,
gate, norm over all heads together (or norm of each head, gate: see Options.head_norm), project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, joint, last_linear, together
from lit_gpt.nn.mixers import ConvWidth, Count, MemoryForm, Positive, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import (
    QueriesKeysValues,
    RecurrentCache,
    advance,
    carried,
    decay_from,
    log_uniform,
    state_flops,
    time_step_bias,
    value_dim_of,
)
from lit_gpt.ops.delta_rule import delta_rule
from lit_gpt.ops.dtypes import upcast
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

RATES = 0.01, 16.0  # exp(A_log) is uniform between them: (0, 16) in the paper's code, but its logarithm stays finite
READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """heads: None is ceil(int(0.75 n) / key_dim), so that a layer has about 6 n^2 weights.
    key_dim, expand_v: a head's keys and queries, and its values over them. conv: width of the short convolution.
    negative_eigenvalues: beta in [0, 2] instead of [0, 1] (arXiv:2411.12537).
    head_norm: each head is normalised by itself, with one gain for all heads, before the gate and not after it, as in
        the layers of flash-linear-attention and Qwen3-Next.
    """

    heads: Count | None = field(default=None, metadata=SHAPES)
    key_dim: Count = 256
    expand_v: Positive = 2.0
    conv: ConvWidth = 4
    negative_eigenvalues: bool = True
    head_norm: bool = False


def sizes(config: ModelConfig, layer_index: int) -> tuple[int, int, int]:
    """Heads, key dimension and value dimension of one head."""
    options = mixer_options(config, layer_index, Options)
    heads = options.heads or math.ceil(int(0.75 * config.n_embd) / options.key_dim)
    return heads, options.key_dim, value_dim_of("gdn", options.key_dim, options.expand_v)


class GatedDeltaNet(nn.Module):
    """beta = 2 sigmoid(b), log decay = -exp(A_log) softplus(a + dt_bias), with b and a one projection per head each."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        self.sizes = heads, _, value_dim = sizes(config, layer_index)
        self.shares_memory = config.layers[layer_index].memory == "mixer"
        self.top = 2.0 if options.negative_eigenvalues else 1.0
        self.qkv = QueriesKeysValues(n, *self.sizes, conv=options.conv)
        self.a, self.b = Linear(n, heads), Linear(n, heads)
        self.ab = together(self.a, self.b)
        self.A_log = role(nn.Parameter(torch.empty(heads)), "vector", log_uniform(*RATES))
        self.dt_bias = role(nn.Parameter(torch.empty(heads)), "vector", time_step_bias)
        self.gate = Linear(n, heads * value_dim)
        self.head_norm = options.head_norm
        self.norm = RMSNorm(value_dim if self.head_norm else heads * value_dim, config.norm_eps)
        self.out = last_linear(config, heads * value_dim)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer. Shares the heads before gate and norm, where its layer shares a memory."""
        q, k, v = self.qkv(x_BTD, context, cache)
        a, b = joint(x_BTD, *self.ab)
        o_BTHV, state = delta_rule(
            q,
            k,
            v,
            self.top * torch.sigmoid(upcast(b)),
            decay_from(a, self.A_log, self.dt_bias),
            normalize=True,
            **carried(context, cache),
        )
        advance(cache, state, x_BTD.shape[1])
        heads = o_BTHV.flatten(2)
        gate = F.silu(upcast(self.gate(x_BTD)))
        if self.head_norm:
            y = (self.norm(o_BTHV, gate.dtype).flatten(2) * gate).to(x_BTD.dtype)
        else:
            y = self.norm(upcast(heads) * gate, x_BTD.dtype)
        return self.out(y), SharedState(memory=heads) if self.shares_memory else None

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and the state's work; see state_flops."""
        projections = sum(m.flops() for m in (self.a, self.b, self.gate, self.out))
        return self.qkv.flops() + projections + state_flops(*self.sizes, delta=True)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length."""
        return self.qkv.new_cache(batch, device, dtype)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> GatedDeltaNet:
    """The registry's entry point."""
    return GatedDeltaNet(config, layer_index)


def memory(config: ModelConfig, layer_index: int) -> MemoryForm:
    """The heads joined, before gate and norm."""
    heads, _, value_dim = sizes(config, layer_index)
    return MemoryForm(heads * value_dim, normed=True)
