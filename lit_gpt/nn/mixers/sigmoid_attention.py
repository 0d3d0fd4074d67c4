"""Sigmoid attention (arXiv:2409.04431): weights sigmoid(scale q k^T + b), each on its own, in place of a softmax.

Without a denominator outputs grow with the number of keys. The default here is b = 0 and an
RMSNorm of every head; the paper's is b = -log(context) without one: see Options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import mixer_options
from lit_gpt.nn.mixers.attention import OWN_VALUES, Attention, memory
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.ops.chunked import chunked_attention
from lit_gpt.scaling.base import Multipliers

__all__ = ["OWN_VALUES", "Options", "SigmoidAttention", "build", "memory"]


@dataclass(frozen=True)
class Options:
    """length_bias: b is -log(block_size) and not 0. head_norm: an RMSNorm of each head's output."""

    length_bias: bool = False
    head_norm: bool = True


class SigmoidAttention(Attention):
    """Attention with a sigmoid, in plain torch. Raises UserError together with attention sinks."""

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers):
        super().__init__(config, layer_index, multipliers)
        if config.attn_sink:
            raise UserError("Sigmoid attention has no softmax, so attn_sink=True cannot act. Use attn_sink=False.")
        options = mixer_options(config, layer_index, Options)
        self.bias = -math.log(config.block_size) if options.length_bias else 0.0
        self.head_norm = RMSNorm(config.head_dim, config.norm_eps) if options.head_norm else None

    def attend(self, q_BTHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, context: Context) -> Tensor:
        """See Attention."""
        y_BTHD = chunked_attention(
            q_BTHD,
            k_BKGD,
            v_BKGD,
            lambda scores, queries, keys: torch.sigmoid(scores + self.bias),
            scale=self.head_dim**-0.5 if self.scale is None else self.scale,
            window=self.window,
            doc_ids=context.doc_ids,
            visible=None if context.mask is None else context.mask.dense,
        )
        return y_BTHD if self.head_norm is None else self.head_norm(y_BTHD, y_BTHD.dtype)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> SigmoidAttention:
    """The registry's entry point."""
    return SigmoidAttention(config, layer_index, multipliers)
