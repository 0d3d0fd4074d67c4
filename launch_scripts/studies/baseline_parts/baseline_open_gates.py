"""`baseline` whose gates start from U(0, 0.02), as in newer nanochat, and not at zero."""

from __future__ import annotations

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig, Starts


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    return baseline.build(depth, shape).replace(starts=Starts(gate=0.02))
