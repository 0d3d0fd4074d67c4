"""`baseline` whose residual scalars start as in newer nanochat: r from 1.15 down to 1.05, and e from 0.20 to 0.05."""

from __future__ import annotations

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig, Starts


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    return baseline.build(depth, shape).replace(starts=Starts(stream=(1.15, 1.05), first=(0.20, 0.05)))
