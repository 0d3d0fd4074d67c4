"""The baseline with 4 key-value heads at every depth."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.config.model import ModelConfig


def build(depth: int, aspect_ratio: int | None = None) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer_gqa4", depth, aspect_ratio=aspect_ratio, head_dim=None, n_kv_head=4)
