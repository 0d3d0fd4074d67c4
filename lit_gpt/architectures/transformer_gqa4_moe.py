"""transformer_gqa4 with a mixture of experts in place of every feed-forward network."""

from __future__ import annotations

from lit_gpt.architectures import transformer_gqa4
from lit_gpt.architectures._experts import mixture
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig

EXPERTS = True


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _experts.mixture."""
    return mixture("transformer_gqa4_moe", transformer_gqa4.build(depth, shape), shape)
