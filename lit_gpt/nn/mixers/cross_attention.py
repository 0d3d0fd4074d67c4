"""Cross-attention of YOCO (arXiv:2405.05254): queries of its own, keys and values of an earlier layer.

LayerSpec.shares names that layer. Its keys are normalised and rotated already, and the
queries here get the same: short convolution, QK-norm and RoPE.
"""

from __future__ import annotations

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.mixers.attention import SOFTMAX_ATTENTION, Attention, memory
from lit_gpt.scaling.base import Multipliers

__all__ = ["SOFTMAX_ATTENTION", "CrossAttention", "build", "memory"]
READS_KEYS = True


class CrossAttention(Attention):
    """Attention without maps for keys and values, and without a cache for them."""

    cross = True
    softmax_only = True


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> CrossAttention:
    """The registry's entry point."""
    return CrossAttention(config, layer_index, multipliers)
