"""Gated attention (a sigmoid per head and token) at aspect ratio 124, 4 key-value heads."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense(
        "transformerga_gqa4",
        depth,
        shape,
        aspect_ratio=124,
        head_dim=None,
        n_kv_head=4,
        attn_gate=True,
    )
