"""The baseline with as many key-value heads as query heads."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer_mha", depth, shape, head_dim=None, n_kv_head=depth)
