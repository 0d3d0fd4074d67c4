"""transformer_gqa4_h2 with a projection on the skip path of every fourth layer.

Only post-norm reads a skip projection. ArchScale builds it in pre-norm too, where it
never gets a gradient; here pre-norm leaves it out (departure D20).
"""

from __future__ import annotations

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig

SKIP_EVERY = 4


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; see builders.dense.dense."""
    layers = tuple(LayerSpec(skip_projection=i % SKIP_EVERY == SKIP_EVERY - 1) for i in range(depth))
    return dense(
        depth,
        shape,
        n_head=2 * depth,
        n_kv_head=4,
        layers=layers,
    )
