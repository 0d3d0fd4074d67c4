"""sambayattn with GMUs in place of all cross-attention."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import HEADS, yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("sambayattnall", depth, shape, aspect_ratio=126, memory=HEADS, units_every=1)
