"""Gated linear attention (arXiv:2312.06635) in every layer."""

from __future__ import annotations

from lit_gpt.architectures._recurrent import recurrent
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _recurrent.recurrent."""
    return recurrent("gla", depth, shape, aspect_ratio=122)
