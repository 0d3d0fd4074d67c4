"""`baseline` whose gates start from U(0, 0.02), as in newer nanochat, and not at zero."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    config = baseline.build(depth, shape)
    return config.replace(starts=replace(config.starts, gate=0.02))
