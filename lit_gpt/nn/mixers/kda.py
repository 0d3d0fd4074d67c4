"""Kimi Delta Attention (arXiv:2510.26692): the delta rule with a decay per key channel.

Order: project, short convolution and silu on q, k, v, delta rule on L2-normalised q and k,
norm of each head, gate, project.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, joint, last_linear, together
from lit_gpt.nn.mixers import ConvWidth, Count, Positive, SharedState, mixer_options
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

RATES = 1.0, 16.0  # exp(A_log) is uniform between them, as in the authors' code in fla and in Mamba-2
READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """heads: None is n / key_dim to the nearest whole number, at least one.
    key_dim, expand_v: a head's keys and queries, and its values over them. conv: width of the short convolution.
    rank: of the projections to the decays and to the output gate; None is the value dimension of a head.
    negative_eigenvalues: beta in [0, 2] (arXiv:2411.12537).
    """

    heads: Count | None = field(default=None, metadata=SHAPES)
    key_dim: Count = 128
    expand_v: Positive = 1.0
    conv: ConvWidth = 4
    rank: Count | None = field(default=None, metadata=SHAPES)
    negative_eigenvalues: bool = False


class KimiDeltaAttention(nn.Module):
    """beta = sigmoid(b); log decay = -exp(A_log) softplus(a + dt_bias), A_log per head and dt_bias per channel."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        heads = options.heads or max(1, round(n / options.key_dim))
        self.sizes = heads, options.key_dim, value_dim_of("kda", options.key_dim, options.expand_v)
        values, rank = heads * self.sizes[2], options.rank or self.sizes[2]
        self.top = 2.0 if options.negative_eigenvalues else 1.0
        self.qkv = QueriesKeysValues(n, *self.sizes, conv=options.conv)
        self.b = Linear(n, heads)
        self.a_down, self.a_up = Linear(n, rank), Linear(rank, heads * options.key_dim)
        self.A_log = role(nn.Parameter(torch.empty(heads)), "vector", log_uniform(*RATES))
        self.dt_bias = role(nn.Parameter(torch.empty(heads * options.key_dim)), "vector", time_step_bias)
        self.gate_down, self.gate_up = Linear(n, rank), Linear(rank, values)
        self.down = together(self.b, self.a_down, self.gate_down)
        self.norm = RMSNorm(self.sizes[2], config.norm_eps)
        self.out = last_linear(config, values)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer."""
        q, k, v = self.qkv(x_BTD, context, cache)
        b, a, gate = joint(x_BTD, *self.down)
        heads_of = k.shape[2:]
        log_decay = decay_from(
            self.a_up(a).unflatten(-1, heads_of), self.A_log[:, None], self.dt_bias.unflatten(-1, heads_of)
        )
        beta = self.top * torch.sigmoid(upcast(b))
        o_BTHV, state = delta_rule(q, k, v, beta, log_decay, normalize=True, **carried(context, cache))
        advance(cache, state, x_BTD.shape[1])
        y = self.norm(o_BTHV, x_BTD.dtype).flatten(2) * torch.sigmoid(self.gate_up(gate))
        return self.out(y), None

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and the state's work; see state_flops."""
        maps = (self.b, self.a_down, self.a_up, self.gate_down, self.gate_up, self.out)
        return self.qkv.flops() + sum(m.flops() for m in maps) + state_flops(*self.sizes, delta=True)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length."""
        return self.qkv.new_cache(batch, device, dtype)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> KimiDeltaAttention:
    """The registry's entry point."""
    return KimiDeltaAttention(config, layer_index)
