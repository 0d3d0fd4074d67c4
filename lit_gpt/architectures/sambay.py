"""SambaY (arXiv:2507.06607): Mamba and windows of 128; then one cache, one memory, cross-attention and GMUs."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("sambay", depth, shape)
