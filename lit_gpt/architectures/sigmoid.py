"""Sigmoid attention (arXiv:2409.04431) in every layer of the baseline."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("sigmoid", depth, shape, head_dim=None, layers=(LayerSpec("sigmoid_attention"),) * depth)
