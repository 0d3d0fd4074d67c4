"""Long-short attention: a window of 128 tokens, and full attention in every fourth layer."""

from __future__ import annotations

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig

WINDOW = 128  # ArchScale's, as is the place of the full layers; with --swa_len that
FULL_EVERY = 4


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see builders.dense.dense."""
    window = shape.window or WINDOW
    layers = tuple(LayerSpec(window=None if i % FULL_EVERY == FULL_EVERY - 1 else window) for i in range(depth))
    return dense(depth, shape, head_dim=None, layers=layers)
