"""SambaY whose GMUs read the feed-forward network of its one full attention layer."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import UP, yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("sambaymlp", depth, shape, aspect_ratio=120, memory=UP)
