"""Cross-attention (see cross_attention.py) of models whose attention is differential."""

from __future__ import annotations

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.mixers.differential_attention import SOFTMAX_ATTENTION, DifferentialAttention, memory
from lit_gpt.scaling.base import Multipliers

__all__ = ["SOFTMAX_ATTENTION", "DifferentialCrossAttention", "build", "memory"]
READS_KEYS = True


class DifferentialCrossAttention(DifferentialAttention):
    """Differential attention without maps for keys and values, and without a cache for them."""

    cross = True
    softmax_only = True


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> DifferentialCrossAttention:
    """The registry's entry point."""
    return DifferentialCrossAttention(config, layer_index, multipliers)
