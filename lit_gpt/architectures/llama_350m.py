"""LLaMA 350M of an optimizer benchmark, at depth 24; see _llama.py."""

from __future__ import annotations

from lit_gpt.architectures._llama import llama
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth."""
    return llama("llama_350m", depth, shape)
