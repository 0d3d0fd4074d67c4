"""transformer_gqa4_h2_skipw with a mixture of experts in place of every feed-forward network."""

from __future__ import annotations

from lit_gpt.architectures import transformer_gqa4_h2_skipw
from lit_gpt.architectures.builders.experts import mixture
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig

EXPERTS = True


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see builders.experts.mixture."""
    return mixture(transformer_gqa4_h2_skipw.build(depth, shape), shape)
