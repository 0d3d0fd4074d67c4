"""Phi-4-mini-flash (arXiv:2507.06607): at depth 32, SambaY with differential attention and 3.8B parameters."""

from __future__ import annotations

from lit_gpt.architectures.builders.hybrid import yoco
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import ModelConfig


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see builders.hybrid.yoco."""
    heads = 4 * max((5 * depth + 8) // 16, 1)  # as many of 64 as fill the width, in pairs of pairs: 40 at depth 32
    return yoco(
        depth,
        shape,
        aspect_ratio=80,
        differential=True,
        window=512,
        n_head=heads,
        head_dim=64,
        n_kv_head=heads // 2,
        attn_bias=True,
        norm="layernorm",
        tie_embeddings=True,
        vocab_size=200_064,
        block_size=8192,
    )
