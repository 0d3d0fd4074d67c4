"""`baseline` whose feed-forward networks start with a first matrix at 0.4 of its size, as in newer nanochat."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    config = baseline.build(depth, shape)
    return config.replace(starts=replace(config.starts, up=0.4))
