"""Samba (arXiv:2406.07522): Mamba and windows of 2048 tokens in turn."""

from __future__ import annotations

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig

WINDOW = 2048  # the paper's; with --swa_len that


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see builders.dense.dense."""
    pair = (LayerSpec("mamba"), LayerSpec(window=shape.window or WINDOW))
    layers = tuple(pair[i % 2] for i in range(depth))
    return dense(depth, shape, aspect_ratio=122, layers=layers)
