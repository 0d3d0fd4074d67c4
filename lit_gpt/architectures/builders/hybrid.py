"""Layer patterns of the hybrid families: Samba (arXiv:2406.07522), YOCO (2405.05254), SambaY (2507.06607).

YOCO is two halves around m = depth / 2. Layers before m are recurrent or see a window. Layer
m is recurrent, and shares its state as a memory; layer m + 1 is attention, and shares its keys
and values. Layers after that keep no state: odd ones attend to these keys and values, even
ones are Gated Memory Units on that memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lit_gpt.architectures.builders.dense import BLOCK_SIZE, dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError


class Memory(NamedTuple):
    """Which layer shares its memory, counted from m, and which part of it."""

    after: int
    part: Literal["mixer", "ffn"]


STATE = Memory(0, "mixer")  # what the recurrent layer m read from its state
HEADS = Memory(1, "mixer")  # the attention heads of layer m + 1
UP = Memory(1, "ffn")  # the up half of its feed-forward network


def yoco(
    depth: int,
    shape: Shape,
    *,
    aspect_ratio: int = 124,
    recurrent: str | None = "mamba",
    recurrent_every: int = 2,
    differential: bool = False,
    window: int = 128,
    half_context: bool = False,
    adaptive_rope: bool = False,
    memory: Memory | None = STATE,
    units_every: int = 2,
    position: str = "none",
    **fields: Any,
) -> ModelConfig:
    """A YOCO family.

    recurrent: mixer of layer m and of every recurrent_every-th layer before; None is attention.
    differential: attention is differential, with heads in pairs.
    window: tokens that attention sees in the first half. half_context: layers from m + 1 see half
    of the training context, not all before them. adaptive_rope: rotary bases by what a layer
    sees, which counts as 4096 tokens from m + 1 on.
    memory: what Gated Memory Units read; None has cross-attention in their place. units_every: 1
    has units in place of all cross-attention.
    Raises UserError for a depth without two halves of pairs.
    """
    if depth % 4:
        raise UserError(
            f"{shape.family} at depth {depth} cannot be built: it has two halves of paired layers, so the depth "
            "must be a multiple of 4."
        )
    m = depth // 2
    near = shape.window or window
    far = (shape.block_size or fields.get("block_size", BLOCK_SIZE)) // 2 if half_context else None
    stem = "differential_" if differential else ""
    local = LayerSpec(stem + "attention", window=near, rope_base=adaptive_base(near) if adaptive_rope else None)
    whole = LayerSpec(stem + "attention", window=far, rope_base=adaptive_base(4096) if adaptive_rope else None)
    state = local if recurrent is None else LayerSpec(recurrent)
    cross = replace(whole, mixer=stem + "cross_attention", shares=m + 1)
    layers = [state if i % recurrent_every == 0 else local for i in range(m)]
    layers += [state, whole, *[cross] * (m - 2)]
    if memory is not None and m > 2:
        lender = m + memory.after
        layers[lender] = replace(layers[lender], memory=memory.part)
        for i in range(m + 2, depth, units_every):
            layers[i] = LayerSpec("gmu", shares=lender)
    if differential:
        fields.setdefault("n_kv_head", paired_kv_heads(depth))
    return dense(depth, shape, aspect_ratio=aspect_ratio, layers=tuple(layers), position=position, **fields)


def adaptive_base(tokens: int) -> float:
    """Base of the rotary frequencies where a layer sees w = `tokens` tokens: 0.09 w^1.628, ArchScale's ada_rope."""
    return 0.09 * tokens**1.628


def paired_kv_heads(depth: int) -> int:
    """Of `depth` query heads, the even divisor nearest to depth / 4, the larger of two.

    It is depth / 4 at depths 8, 16 and 24. ArchScale has depth / 4 at 12 and 20 too, which is odd, while
    differential attention needs pairs of heads (departure D18).
    """
    even = [k for k in range(2, depth + 1, 2) if depth % k == 0]
    return min(even, key=lambda k: (abs(k - depth / 4), -k))
