"""Families with one recurrent mixer in every layer."""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig


def recurrent(family: str, depth: int, shape: Shape, aspect_ratio: int) -> ModelConfig:
    """The mixer of the family's name, and a SwiGLU four times as wide as the model, `depth` times.

    aspect_ratio: of all even ones, the one with which depth 8 is nearest in size to the
    transformer's depth 8 (121.6M without embeddings), so that their ladders compare.
    """
    layers = (LayerSpec(family),) * depth
    return dense(family, depth, shape, aspect_ratio=aspect_ratio, layers=layers, position="none")
