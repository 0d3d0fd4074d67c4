"""The baseline with a learnable sink in every head's softmax."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.config.model import ModelConfig


def build(depth: int, aspect_ratio: int | None = None) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformersa", depth, aspect_ratio=aspect_ratio, head_dim=None, attn_sink=True)
