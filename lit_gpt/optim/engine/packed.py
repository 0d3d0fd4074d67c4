"""State in 8 bits (--optimizer_args.state int8): codes with a scale for every 256 numbers, as in arXiv:2110.02861.

A block of numbers x with the largest magnitude s is kept as s in fp32 and the codes

    c = sign(x) L (|x| / s)^(1/4),    x = sign(c) s (|c| / L)^4

Steps of equal size in the fourth root are fine near 0, where most numbers are, and so reach over eight powers of ten;
equal steps in x itself would lose the small ones (the paper's dynamic code is another that does not). Momentum has 127
codes of either sign. A second moment is kept as its root, which is what Adam divides by, in 255 codes.

An average that moves by less than half a step would stand still if it were rounded to the nearest code. So x becomes
the code below or above, with chances under which the mean is x; for a root, the mean of its square, which is what is
averaged. Chance is a hash of x, its column and how often the state was written, so that a resumed run has the same
bits.

Blocks lie inside of rows (of the last dimension), and weights are sharded by rows, so no block is ever cut. What has no
rows of some length is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.fused import fused
from lit_gpt.optim.engine.matrix_batches import local

State = Mapping[Tensor, dict[str, Tensor]]

BLOCK = 256  # of arXiv:2110.02861 as bitsandbytes and torchao have it today; the paper's is 2,048
SHORTEST = 64  # numbers in a row: below, scales take more than they save is worth
SIGNED, ROOT = ("exp_avg", "exp_avg_slow", "momentum"), ("exp_avg_sq",)
SCALE, WRITES = "_scale", "writes"
HASHES = (0x2C1B3C6D, 0x297A2D39)  # odd numbers with many bits of either kind, so that products mix bits


def blocks_of_row(width: int) -> int:
    """How many scales a row of this many numbers has."""
    return -(-width // BLOCK)


def packs(shape: Sequence[int]) -> bool:
    """Whether the state of a parameter of this shape is kept in 8 bits."""
    return len(shape) >= 2 and shape[-1] >= SHORTEST


def pack_new(p: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same new state, with zeros in 8 bits where they will be."""
    found = dict(state)
    for key in (k for k in state if k in SIGNED + ROOT and packs(p.shape)):
        found[key] = torch.zeros_like(state[key], dtype=torch.int8 if key in SIGNED else torch.uint8)
        # Cut out of the parameter, so that it is sharded like it.
        found[key + SCALE] = torch.zeros_like(p.detach()[..., : blocks_of_row(p.shape[-1])], dtype=torch.float32)
        found[WRITES] = torch.zeros((), dtype=torch.int32, device=p.device)
    return found


@contextmanager
def unpacked(params: Sequence[Tensor], state: State, skip: Tensor) -> Iterator[State]:
    """Within it the state of these parameters is in the parameter's dtype; what it is then is kept in 8 bits.

    skip: 0-d bool, whether the codes must stay as they are. State that is not in 8 bits is passed on as it is.
    """
    wide = {p: dict(state[p]) for p in params}
    for p, kept in wide.items():
        for key in _keys(kept):
            kept[key] = decode(local(kept[key]), local(kept[key + SCALE])).to(p.dtype)
    yield wide
    for p, kept in wide.items():
        for key in _keys(state[p]):
            codes, scales, writes = local(state[p][key]), local(state[p][key + SCALE]), state[p][WRITES]
            new = (encode_signed if key in SIGNED else encode_root)(kept[key].float(), writes)
            for old, value in zip((codes, scales), new):
                old.copy_(torch.where(skip, old, value))
        if WRITES in kept:
            state[p][WRITES].add_(~skip)


def _keys(state: Mapping[str, Any]) -> list[str]:
    return [key for key in state if key + SCALE in state]


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The numbers of codes (..., n) with scales (..., blocks), in fp32; squares again where roots are kept."""
    return _in_rows(_decode(_in_blocks(codes), scales.reshape(-1, 1)), codes.shape)


def encode_signed(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 like x, scales (..., blocks)) of numbers x (..., n) in fp32."""
    codes, scales = _encode_signed(_in_blocks(x), writes)
    return _in_rows(codes, x.shape), scales.view(*x.shape[:-1], -1)


def encode_root(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 like x, scales (..., blocks)) of the roots of numbers x (..., n) from 0 on, in fp32."""
    codes, scales = _encode_root(_in_blocks(x), writes)
    return _in_rows(codes, x.shape), scales.view(*x.shape[:-1], -1)


# Compilers see blocks (N, 256) alone, so that one kernel serves all shapes.
def _in_blocks(x: Tensor) -> Tensor:
    return (F.pad(x, (0, -x.shape[-1] % BLOCK)) if x.shape[-1] % BLOCK else x).reshape(-1, BLOCK)


def _in_rows(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse, for rows of shape[-1]."""
    return blocks.view(*shape[:-1], -1)[..., : shape[-1]]


@fused
def _decode(codes: Tensor, scales: Tensor) -> Tensor:
    x = (codes.float() / _levels(codes.dtype)).square().square() * scales
    return x.square() if codes.dtype == torch.uint8 else x * codes.sign()


@fused
def _encode_signed(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales = _encode(x.abs(), writes, torch.int8)
    return codes * x.sign().to(torch.int8), scales


@fused
def _encode_root(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    return _encode(x.sqrt(), writes, torch.uint8)


def _levels(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).max


def _encode(x: Tensor, writes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes, scales (N, 1)) of blocks of numbers from 0 on, (N, 256)."""
    levels, scales = _levels(dtype), x.amax(-1, keepdim=True)
    y = x / torch.where(scales > 0, scales, 1.0)
    low = (y.sqrt().sqrt() * levels).floor().clamp(max=levels)
    below, above = ((c / levels).square().square() for c in (low, low + 1))
    if dtype == torch.uint8:  # roots
        y, below, above = y.square(), below.square(), above.square()
    codes = low + (_chance(x, writes) * (above - below) < y - below)
    return codes.clamp(max=levels).to(dtype), scales


def _chance(x: Tensor, writes: Tensor) -> Tensor:
    """A number from 0 to below 1 for each of x, by its bits, its column and the count."""
    columns = torch.arange(BLOCK, dtype=torch.int32, device=x.device)
    bits = x.view(torch.int32) + (columns * HASHES[1] + writes * HASHES[0])
    for multiplier in HASHES:
        bits = (bits ^ (bits >> 15)) * multiplier
    return ((bits ^ (bits >> 15)) & 0xFFFFFF) / 2**24
