"""Shapes of the two optimizer benchmarks: a width, a feed-forward width and heads that were published for one depth."""

from __future__ import annotations

from typing import Any

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import Feedforward, LayerSpec, ModelConfig


def published(
    depth: int,
    shape: Shape,
    *,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    mixer: str = "attention",
    ffn: Feedforward = "swiglu",
    **fields: Any,
) -> ModelConfig:
    """The published shape where the depth is `layers`; hidden is the feed-forward width, mixer and ffn every layer's.

    At another depth the width is in proportion to it (with --ar: what that says), heads of attention keep their
    dimension, and the feed-forward width follows as a multiple of 16.
    """
    head_dim = width // heads
    every = (LayerSpec(mixer, ffn),) * depth
    model = dense(depth, shape, head_dim=head_dim, kv_heads_per_layer=1, layers=every, **fields)  # its width is below
    n = width if depth == layers else max(round(width * depth / layers / head_dim), 1) * head_dim
    n = n if shape.aspect_ratio is None else shape.aspect_ratio * depth
    inner = hidden if n == width else -(-hidden * n // (16 * width)) * 16
    count = max(n // head_dim, 1)
    return model.replace(n_embd=n, n_head=count, n_kv_head=count, intermediate_size=inner)
