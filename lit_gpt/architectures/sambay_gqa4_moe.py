"""sambay with 4 key-value heads, and a mixture of experts in place of every feed-forward network."""

from __future__ import annotations

from lit_gpt.architectures._experts import mixture
from lit_gpt.architectures._hybrid import yoco
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig

EXPERTS = True


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see _hybrid.yoco."""
    return mixture("sambay_gqa4_moe", yoco("sambay_gqa4_moe", depth, shape, n_kv_head=4), shape)
