"""Dimensions that follow from the depth, for every family."""

from __future__ import annotations

from typing import Any

from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig

BLOCK_SIZE = 4096  # tokens


def dense(
    depth: int,
    shape: Shape,
    *,
    aspect_ratio: int = 128,
    n_head: int | None = None,
    heads_per_layer: int = 1,
    head_dim: int | None = 128,
    n_kv_head: int | None = None,
    kv_heads_per_layer: float = 0.25,
    mlp_expand: int = 4,
    block_size: int = BLOCK_SIZE,
    mixer: str = "attention",
    layers: tuple[LayerSpec, ...] | None = None,
    **fields: Any,
) -> ModelConfig:
    """Width = aspect_ratio * depth.

    aspect_ratio, block_size: the family's own, where the shape does not say.
    n_head: None gives heads_per_layer * depth query heads. n_kv_head: None gives kv_heads_per_layer * depth,
        rounded down, at least one.
    head_dim: None divides the width by the number of heads (so it follows the aspect ratio).
    layers: None is the mixer in every layer, without a window.
    """
    width = (aspect_ratio if shape.aspect_ratio is None else shape.aspect_ratio) * depth
    heads = heads_per_layer * depth if n_head is None else n_head
    return ModelConfig(
        family=shape.family,
        depth=depth,
        n_embd=width,
        n_head=heads,
        head_dim=width // heads if head_dim is None else head_dim,
        n_kv_head=max(int(kv_heads_per_layer * depth), 1) if n_kv_head is None else n_kv_head,
        intermediate_size=mlp_expand * width,
        block_size=block_size if shape.block_size is None else shape.block_size,
        layers=(LayerSpec(mixer),) * depth if layers is None else layers,
        **fields,
    )
