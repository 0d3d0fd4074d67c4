"""The baseline: GQA with depth/4 key-value heads, SwiGLU, RoPE, pre-norm."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer", depth, shape, head_dim=None)
