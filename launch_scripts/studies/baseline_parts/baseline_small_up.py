"""`baseline` whose feed-forward networks start with a first matrix at 0.4 of its size, as in newer nanochat."""

from __future__ import annotations

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig, Starts


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    return baseline.build(depth, shape).replace(starts=Starts(up=0.4))
