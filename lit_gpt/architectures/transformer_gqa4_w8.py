"""4 key-value heads and a feed-forward network 32 times as wide as the model."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer_gqa4_w8", depth, shape, head_dim=None, n_kv_head=4, mlp_expand=32)
