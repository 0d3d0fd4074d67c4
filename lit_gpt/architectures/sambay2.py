"""SambaY with Mamba-2."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("sambay2", depth, shape, recurrent="mamba2")
