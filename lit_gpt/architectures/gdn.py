"""Gated DeltaNet (arXiv:2412.06464) in every layer."""

from __future__ import annotations

from lit_gpt.architectures._recurrent import recurrent
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _recurrent.recurrent."""
    return recurrent("gdn", depth, shape, aspect_ratio=112)
