"""Long-short attention: a window of 128 tokens, and full attention in every fourth layer."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.config.model import LayerSpec, ModelConfig

WINDOW = 128
FULL_EVERY = 4


def build(depth: int, aspect_ratio: int | None = None) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    layers = tuple(LayerSpec(window=None if i % FULL_EVERY == FULL_EVERY - 1 else WINDOW) for i in range(depth))
    return dense("transformerls", depth, aspect_ratio=aspect_ratio, head_dim=None, layers=layers)
