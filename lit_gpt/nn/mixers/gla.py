"""Gated Linear Attention (arXiv:2312.06635): a decay per key channel from a low-rank gate.

Order: project, linear attention, norm of each head, gate, project.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, last_linear
from lit_gpt.nn.mixers import Count, Positive, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import QueriesKeysValues, RecurrentCache, advance, carried, head_sizes, state_flops
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.linear_attention import linear_attention
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """heads: None is n // 384, at least one.
    expand_k, expand_v: all keys and all values over n; a head has its share, to the nearest multiple of 8.
    gate_rank: of the projection to the decays. gate_divisor: tau, under the log sigmoid: the larger, the slower decay.
    Both are 16 in the paper (section 4.4).
    """

    heads: Count | None = field(default=None, metadata=SHAPES)
    expand_k: Positive = 0.5
    expand_v: Positive = 1.0
    gate_rank: Count = 16
    gate_divisor: Positive = 16.0


class GatedLinearAttention(nn.Module):
    """Log decay: logsigmoid(a) / tau, with a a projection of low rank and a bias."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        heads = options.heads or max(1, n // 384)  # as in ArchScale
        self.sizes = head_sizes("gla", n, heads, options.expand_k, options.expand_v)
        values = heads * self.sizes[2]
        self.divisor = options.gate_divisor
        self.qkv = QueriesKeysValues(n, *self.sizes)
        self.a_down = Linear(n, options.gate_rank)
        self.a_up = Linear(options.gate_rank, heads * self.sizes[1], bias=True)
        self.gate = Linear(n, values)
        self.norm = RMSNorm(self.sizes[2], config.norm_eps)
        self.out = last_linear(config, values)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer."""
        q, k, v = self.qkv(x_BTD, context, cache)
        log_decay = F.logsigmoid(upcast(self.a_up(self.a_down(x_BTD)))) / self.divisor
        o_BTHV, state = linear_attention(q, k, v, log_decay.unflatten(-1, k.shape[2:]), **carried(context, cache))
        advance(cache, state, x_BTD.shape[1])
        y = self.norm(o_BTHV, x_BTD.dtype).flatten(2) * F.silu(self.gate(x_BTD))
        return self.out(y), None

    def flops(self, context_length: int) -> float:
        """Projections, and the state's work; see state_flops."""
        projections = sum(m.flops() for m in (self.qkv, self.a_down, self.a_up, self.gate, self.out))
        return projections + state_flops(*self.sizes, delta=False)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length."""
        return self.qkv.new_cache(batch, device, dtype)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> GatedLinearAttention:
    """The registry's entry point."""
    return GatedLinearAttention(config, layer_index)
