"""`baseline` with value embeddings in every layer, not in every other one."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    config = baseline.build(depth, shape)
    return config.replace(layers=tuple(replace(layer, value_embedding=True) for layer in config.layers))
