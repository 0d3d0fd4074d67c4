"""Forgetting attention (FoX, arXiv:2503.02130) in every layer of the baseline, in place of rotary positions."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _dense.dense."""
    return dense("fox", depth, shape, head_dim=None, layers=(LayerSpec("fox"),) * depth, position="none")
