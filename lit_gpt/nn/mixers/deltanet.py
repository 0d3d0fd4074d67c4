"""DeltaNet (arXiv:2406.06484): the delta rule without decay.

Order: project, short convolution and silu on q, k, v, delta rule on L2-normalised q and k,
norm of each head, project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, last_linear
from lit_gpt.nn.mixers import ConvWidth, Count, Positive, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import QueriesKeysValues, RecurrentCache, advance, carried, head_sizes, state_flops
from lit_gpt.ops.delta_rule import KEY_DIM_LIMIT, delta_rule
from lit_gpt.ops.dtypes import upcast
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """heads: None is 9, or as many more as keep keys within the 256 dimensions of the kernels.
    expand_k, expand_v: all keys and all values over n; a head has its share, to the nearest multiple of 8.
    conv: width of the short convolution. negative_eigenvalues: beta in [0, 2] (arXiv:2411.12537).
    """

    heads: Count | None = field(default=None, metadata=SHAPES)
    expand_k: Positive = 1.5
    expand_v: Positive = 1.5
    conv: ConvWidth = 4
    negative_eigenvalues: bool = False


class DeltaNet(nn.Module):
    """beta = sigmoid(b), with b one projection per head."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        heads = options.heads or max(9, math.ceil(options.expand_k * n / KEY_DIM_LIMIT))
        self.sizes = head_sizes("deltanet", n, heads, options.expand_k, options.expand_v)
        # beta = 2 reflects along k, an eigenvalue of -1: such states can count modulo 2 (arXiv:2411.12537).
        self.top = 2.0 if options.negative_eigenvalues else 1.0
        self.qkv = QueriesKeysValues(n, *self.sizes, conv=options.conv)
        self.b = Linear(n, heads)
        self.norm = RMSNorm(self.sizes[2], config.norm_eps)
        self.out = last_linear(config, heads * self.sizes[2])

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer."""
        q, k, v = self.qkv(x_BTD, context, cache)
        beta = self.top * torch.sigmoid(upcast(self.b(x_BTD)))
        o_BTHV, state = delta_rule(q, k, v, beta, normalize=True, **carried(context, cache))
        advance(cache, state, x_BTD.shape[1])
        return self.out(self.norm(o_BTHV, x_BTD.dtype).flatten(2)), None

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and the state's work; see state_flops."""
        return self.qkv.flops() + self.b.flops() + self.out.flops() + state_flops(*self.sizes, delta=True)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length."""
        return self.qkv.new_cache(batch, device, dtype)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> DeltaNet:
    """The registry's entry point."""
    return DeltaNet(config, layer_index)
