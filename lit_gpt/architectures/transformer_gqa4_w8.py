"""4 key-value heads and a feed-forward network 32 times as wide as the model."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.config.model import ModelConfig


def build(depth: int, aspect_ratio: int | None = None) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("transformer_gqa4_w8", depth, aspect_ratio=aspect_ratio, head_dim=None, n_kv_head=4, mlp_expand=32)
