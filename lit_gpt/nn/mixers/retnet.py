"""Multi-scale retention, RetNet's mixer (arXiv:2307.08621): rotated q and k, a constant decay per head.

Order: project, rotate, linear attention, norm of each head, gate, project.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, last_linear
from lit_gpt.nn.mixers import Count, Positive, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import QueriesKeysValues, RecurrentCache, advance, carried, head_sizes, state_flops
from lit_gpt.nn.rotary import rotate
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.linear_attention import linear_attention
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False  # n_head is where its own number of heads comes from, which shapes tell


@dataclass(frozen=True)
class Options:
    """heads: None is half the model's n_head, at least one.
    expand_k, expand_v: all keys and all values over n; a head has its share, to the nearest multiple of 8.
    rotary_base: of the rotation, which is the decay's imaginary part and so no matter of ModelConfig.position.
    """

    heads: Count | None = field(default=None, metadata=SHAPES)
    expand_k: Positive = 1.0
    expand_v: Positive = 2.0
    rotary_base: Annotated[float, Bounds(1)] = 10_000.0


class Retention(nn.Module):
    """Log decay of head h (from 0): log(1 - 2^(-5 - h))."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        heads = options.heads or max(1, config.n_head // 2)
        self.sizes = head_sizes("retnet", n, heads, options.expand_k, options.expand_v)
        values = heads * self.sizes[2]
        self.rotary_base = options.rotary_base
        self.qkv = QueriesKeysValues(n, *self.sizes)
        self.gate = Linear(n, values)
        self.norm = RMSNorm(self.sizes[2], config.norm_eps)
        self.out = last_linear(config, values)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer."""
        q, k, v = self.qkv(x_BTD, context, cache)
        tables = self._tables(None if cache is None else cache.seen_B, x_BTD)
        q, k = rotate(q, *tables), rotate(k, *tables)
        # gamma of the paper's equation 8, made as a logarithm: it never is a number next to 1, which would be rounded.
        log_decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(self.sizes[0], device=x_BTD.device)))
        o_BTHV, state = linear_attention(q, k, v, log_decay, **carried(context, cache))
        advance(cache, state, x_BTD.shape[1])
        y = self.norm(o_BTHV, x_BTD.dtype).flatten(2) * F.silu(self.gate(x_BTD))
        return self.out(y), None

    def _tables(self, seen_B: Tensor | None, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (T, K/2), at least fp32. Only distances matter, so positions run on over documents.

        seen_B: tokens before these, as many in each row.
        """
        dim, dtype = self.sizes[1], upcast(x_BTD[:0]).dtype
        pairs = torch.arange(dim // 2, dtype=dtype, device=x_BTD.device)
        positions = torch.arange(x_BTD.shape[1], dtype=dtype, device=x_BTD.device)
        positions = positions if seen_B is None else positions + seen_B[:1]
        angles_TR = positions[:, None] * self.rotary_base ** (-2.0 * pairs / dim)
        return angles_TR.cos(), angles_TR.sin()

    def flops(self, context_length: int) -> float:
        """Projections, and the state's work; see state_flops."""
        projections = sum(m.flops() for m in (self.qkv, self.gate, self.out))
        return projections + state_flops(*self.sizes, delta=False)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length."""
        cache = self.qkv.new_cache(batch, device, dtype)
        cache.seen_B = torch.zeros(batch, dtype=torch.long, device=device)
        return cache


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> Retention:
    """The registry's entry point."""
    return Retention(config, layer_index)
