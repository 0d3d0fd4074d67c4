"""sambayw with a learnable attention sink per head."""

from __future__ import annotations

from lit_gpt.architectures._hybrid import yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return yoco("sambaywsa", depth, shape, half_context=True, attn_sink=True)
