"""YOCO (arXiv:2405.05254) with windows of 128 tokens in its first half, and RoPE."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("swayoco", depth, shape, aspect_ratio=130, recurrent=None, memory=None, position="rope")
