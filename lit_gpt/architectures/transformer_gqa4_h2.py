"""4 key-value heads and 2 * depth query heads of 128: attention is twice as wide as the model."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer_gqa4_h2", depth, shape, n_head=2 * depth, n_kv_head=4)
