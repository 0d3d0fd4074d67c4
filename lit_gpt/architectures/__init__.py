"""Model families: one file each, `build(depth) -> ModelConfig`. The file name is the CLI value."""

from __future__ import annotations

from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.registry import Registry

FAMILIES = Registry("lit_gpt.architectures", "model family")
DEPTHS = (8, 12, 16, 20, 24)  # the depths of the published ladders; any depth that fits is allowed


def build(family: str, depth: int, **options: Any) -> ModelConfig:
    """The family's ModelConfig at a depth.

    options: what a family's build() takes beyond depth (aspect_ratio for all of them).
    Raises UserError for an unknown family or a depth its layout does not allow.
    """
    return FAMILIES.load(family).build(depth, **options)
