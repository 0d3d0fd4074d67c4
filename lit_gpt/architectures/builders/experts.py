"""Mixtures: families whose feed-forward networks are mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import Experts, ModelConfig


def mixture(dense: ModelConfig, shape: Shape) -> ModelConfig:
    """The dense model with a mixture of experts in place of every feed-forward network."""
    layers = tuple(replace(spec, experts=spec.ffn is not None) for spec in dense.layers)
    return dense.replace(layers=layers, experts=shape.experts or Experts())
