"""Model families: one file each, `build(depth, shape) -> ModelConfig`. The file name is the CLI value."""

from __future__ import annotations

from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.registry import Registry

FAMILIES = Registry("lit_gpt.architectures", "model family")
DEPTHS = (8, 12, 16, 20, 24)  # the depths of the published ladders; any depth that fits is allowed


def build(
    family: str,
    depth: int,
    *,
    aspect_ratio: int | None = None,
    block_size: int | None = None,
    window: int | None = None,
    experts: Experts | None = None,
) -> ModelConfig:
    """The family's ModelConfig at a depth; see Shape for the options.

    Raises UserError for an unknown family or a depth its layout does not allow.
    """
    return FAMILIES.load(family).build(depth, Shape(aspect_ratio, block_size, window, experts))


def has_experts(family: str) -> bool:
    """Whether the family's feed-forward networks are mixtures of experts. Raises UserError for an unknown one."""
    return getattr(FAMILIES.load(family), "EXPERTS", False)
