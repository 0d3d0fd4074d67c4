"""Dropout (arXiv:1207.0580) whose masks are a function of numbers, and not of the state of a generator.

A mask follows from (seed, step, sample, layer, branch, position, channel) alone. So a run that is resumed draws the
masks of one that went on, recomputation in the backward pass draws them again, and neither micro-batches nor the number
of processes change them. In evaluation nobody gives keys, and nothing is dropped.

The numbers are hashed, one after the other, into 32-bit words, which are held in int64: torch has few operations on
unsigned integers, and products of a word with a multiplier below 2^31 in size do not overflow there.

Shapes: B batch, T tokens, D width, L layers, W = 2 words of a key.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
# Shifts 16, 15, 15 and multipliers of github.com/skeeto/hash-prospector; the second one less 2^32, which changes no
# bit of a word's product.
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97 - (1 << 32))
STEP = 0x9E3779B9  # 2^32 over the golden ratio: it keeps words of zeros from staying zeros


def mix(x: Tensor) -> Tensor:
    """Words in which each bit of the given ones flips about half of the bits; a bijection of 32-bit words."""
    x = ((x ^ (x >> 16)) * MULTIPLIERS[0]) & WORD
    x = ((x ^ (x >> 15)) * MULTIPLIERS[1]) & WORD
    return x ^ (x >> 15)


def fold(keys: Tensor, number: Tensor | int) -> Tensor:
    """Keys that depend on a further number from 0 to 2^32 - 1, too; of shapes that broadcast."""
    return mix(((keys ^ number) + STEP) & WORD)


def row_keys(seed: int, step: int, first: int, rows: int) -> Tensor:
    """The keys of the samples first, first + 1, ...: (B, W) int64, on the host."""
    keys, samples = torch.tensor([[1, 2]]), torch.arange(first, first + rows)[:, None]
    for number in (seed, step, samples):
        keys = fold(fold(keys, number & WORD), number >> 32)
    return keys


def layer_keys(keys_BW: Tensor, layers: int) -> Tensor:
    """The keys of every layer, (L, B, W)."""
    return fold(keys_BW, torch.arange(layers, device=keys_BW.device)[:, None, None])


def drop(x_BTD: Tensor, keys_BW: Tensor | None, branch: int, rate: float) -> Tensor:
    """x with a share `rate` of its entries 0 and the others divided by 1 - rate; x itself without keys.

    branch: 0 or 1, which of a layer's two outputs this is.
    """
    if keys_BW is None or rate == 0:
        return x_BTD
    _, length, width = x_BTD.shape
    index_TD = torch.arange(2 * length * width, device=x_BTD.device).view(length, width, 2)[..., branch]
    first, second = keys_BW[:, None, None].unbind(-1)
    bits_BTD = mix((mix(index_TD ^ first) + second) & WORD)
    return torch.where(bits_BTD >= round(rate * 2**32), x_BTD / (1 - rate), 0.0)
