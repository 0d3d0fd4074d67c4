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

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.fused import LARGE, fused
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
    batches = [(key, part) for key in SIGNED + ROOT for part in _parts_with(key, params, state)]
    for key, part in batches:
        numbers = decode([local(state[p][key]) for p in part], [local(state[p][key + SCALE]) for p in part])
        for p, x in zip(part, numbers):
            wide[p][key] = x.to(p.dtype)
    yield wide
    for key, part in batches:
        encode = encode_signed if key in SIGNED else encode_root
        codes, scales = encode([wide[p][key].float() for p in part], [state[p][WRITES] for p in part])
        for name, values in ((key, codes), (key + SCALE, scales)):
            old = [local(state[p][name]) for p in part]
            torch._foreach_copy_(old, [torch.where(skip, x, value) for x, value in zip(old, values)])
    if written := [state[p][WRITES] for p in params if WRITES in state[p]]:
        torch._foreach_add_(written, (~skip).int())


def _parts_with(key: str, params: Sequence[Tensor], state: State) -> list[list[Tensor]]:
    """The parameters that have a kind of state in 8 bits: large ones alone, small ones together. One compiled kernel
    for many is less work for the host than many of a few thousand numbers, which `fused` does not compile.
    """
    kept = [p for p in params if key + SCALE in state[p]]
    return parts(sorted(kept, key=lambda p: local(p).numel()), LARGE)


def parts(params: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """The parameters in order, in lists that end where they have at least `size` numbers."""
    found, room = [], 0
    for p in params:
        if room <= 0:
            found.append([])
            room = size
        found[-1].append(p)
        room -= local(p).numel()
    return found


def decode(codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """The numbers of tensors of codes (..., n) with scales (..., blocks), in fp32; squares where roots are kept."""
    blocks = _decode(_in_blocks(codes), torch.cat([s.reshape(-1, 1) for s in scales]))
    return _in_rows(blocks, codes)


def encode_signed(x: Sequence[Tensor], writes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(codes int8 like x, scales (..., blocks)) of tensors x (..., n) in fp32, with a 0-d count of writes for each."""
    return _of_rows(*_encode_signed(_in_blocks(x), _of_blocks(writes, x)), x)


def encode_root(x: Sequence[Tensor], writes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(codes uint8 like x, scales (..., blocks)) of the roots of tensors x (..., n) from 0 on, else the same."""
    return _of_rows(*_encode_root(_in_blocks(x), _of_blocks(writes, x)), x)


# Compilers see blocks (N, 256) alone, so that one kernel serves all shapes.
def _in_blocks(tensors: Sequence[Tensor]) -> Tensor:
    """All blocks of some tensors, the last one of a row filled up with zeros."""
    padded = [F.pad(x, (0, -x.shape[-1] % BLOCK)) if x.shape[-1] % BLOCK else x for x in tensors]
    blocks = [x.reshape(-1, BLOCK) for x in padded]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _counts(like: Sequence[Tensor]) -> list[int]:
    """How many blocks each of the tensors has."""
    return [x.shape[:-1].numel() * blocks_of_row(x.shape[-1]) for x in like]


def _of_blocks(writes: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The count of each block's tensor, (N, 1)."""
    return torch.cat([n.expand(count, 1) for n, count in zip(writes, _counts(like))])


def _in_rows(blocks: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of _in_blocks. Without gaps between rows, which torch's fused kernels do not see."""
    widths = [blocks_of_row(t.shape[-1]) * BLOCK for t in like]
    rows = [x.view(*t.shape[:-1], n) for x, t, n in zip(blocks.split(_counts(like)), like, widths)]
    return [x[..., : t.shape[-1]].contiguous() for x, t in zip(rows, like)]


def _of_rows(codes: Tensor, scales: Tensor, like: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    of_tensors = zip(scales.split(_counts(like)), like)
    return _in_rows(codes, like), [s.view(*t.shape[:-1], blocks_of_row(t.shape[-1])) for s, t in of_tensors]


@fused
def _decode(codes: Tensor, scales: Tensor) -> Tensor:
    x = (codes.float() * (1 / levels(codes.dtype))).square().square() * scales
    return x.square() if codes.dtype == torch.uint8 else x * codes.sign()


@fused
def _encode_signed(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales = _encode(x.abs(), writes, torch.int8)
    return codes * x.sign().to(torch.int8), scales


@fused
def _encode_root(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    return _encode(x.sqrt(), writes, torch.uint8)


def levels(dtype: torch.dtype) -> int:
    """The largest code of a dtype. Codes are multiplied by its inverse, as CUDA does where a number divides a tensor,
    so that decoded numbers are the same everywhere; times the inverse in fp32 it is 1 itself.
    """
    return torch.iinfo(dtype).max


def _encode(x: Tensor, writes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes, scales (N, 1)) of blocks of numbers from 0 on, (N, 256)."""
    largest, scales = levels(dtype), x.amax(-1, keepdim=True)
    y = x / torch.where(scales > 0, scales, 1.0)
    low = (y.sqrt().sqrt() * largest).floor().clamp(max=largest)
    below, above = ((c * (1 / largest)).square().square() for c in (low, low + 1))
    if dtype == torch.uint8:  # roots
        y, below, above = y.square(), below.square(), above.square()
    codes = low + (_chance(x, writes) * (above - below) < y - below)
    return codes.clamp(max=largest).to(dtype), scales


def _chance(x: Tensor, writes: Tensor) -> Tensor:
    """A number from 0 to below 1 for each of x, by its bits, its column and the count, 0-d or of each row."""
    columns = torch.arange(BLOCK, dtype=torch.int32, device=x.device)
    bits = x.view(torch.int32) + (columns * HASHES[1] + writes * HASHES[0])
    for multiplier in HASHES:
        bits = (bits ^ (bits >> 15)) * multiplier
    return ((bits ^ (bits >> 15)) & 0xFFFFFF) / 2**24
