"""LLaMA shapes of the two optimizer benchmarks: multi-head attention, SwiGLU, RoPE, RMSNorm, pre-norm."""

from __future__ import annotations

from typing import Any

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def llama(depth: int, shape: Shape, *, width: int, layers: int, heads: int, hidden: int, **fields: Any) -> ModelConfig:
    """The published shape where the depth is `layers`; hidden is the feed-forward width.

    At another depth the width is in proportion to it (with --ar: what that says), heads keep their dimension,
    and the feed-forward width follows as a multiple of 16.
    """
    head_dim = width // heads
    model = dense(depth, shape, head_dim=head_dim, kv_heads_per_layer=1, **fields)  # heads follow from the width below
    n = width if depth == layers else max(round(width * depth / layers / head_dim), 1) * head_dim
    n = n if shape.aspect_ratio is None else shape.aspect_ratio * depth
    inner = hidden if n == width else -(-hidden * n // (16 * width)) * 16
    count = max(n // head_dim, 1)
    return model.replace(n_embd=n, n_head=count, n_kv_head=count, intermediate_size=inner)
