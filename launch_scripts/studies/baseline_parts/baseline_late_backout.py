"""`baseline` whose backout takes the stream one layer later, as in nanochat: behind layer depth / 2, counted from 0."""

from __future__ import annotations

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    return baseline.build(depth, shape).replace(backout_layer=min(depth // 2 + 1, depth - 1))
