"""`baseline` with half of its value embeddings: in every fourth layer, the last one among them."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    config = baseline.build(depth, shape)
    layers = (replace(spec, value_embedding=(depth - 1 - i) % 4 == 0) for i, spec in enumerate(config.layers))
    return config.replace(layers=tuple(layers))
