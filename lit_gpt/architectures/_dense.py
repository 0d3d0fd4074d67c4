"""What the dense attention families have in common."""

from __future__ import annotations

from typing import Any

from lit_gpt.config.model import LayerSpec, ModelConfig


def dense(
    family: str,
    depth: int,
    *,
    aspect_ratio: int | None,
    default_aspect_ratio: int = 128,
    heads_per_layer: int = 1,
    head_dim: int | None = 128,
    n_kv_head: int | None = None,
    mlp_expand: int = 4,
    layers: tuple[LayerSpec, ...] | None = None,
    **fields: Any,
) -> ModelConfig:
    """Width = aspect_ratio * depth, heads_per_layer * depth query heads.

    head_dim: None divides the width by the number of heads (so it follows the aspect ratio).
    n_kv_head: None gives depth // 4 key-value heads, at least one.
    """
    ratio = default_aspect_ratio if aspect_ratio is None else aspect_ratio
    n_head = heads_per_layer * depth
    return ModelConfig(
        family=family,
        depth=depth,
        n_embd=ratio * depth,
        n_head=n_head,
        head_dim=ratio * depth // n_head if head_dim is None else head_dim,
        n_kv_head=max(depth // 4, 1) if n_kv_head is None else n_kv_head,
        intermediate_size=mlp_expand * ratio * depth,
        layers=layers if layers is not None else (LayerSpec(),) * depth,
        **fields,
    )
