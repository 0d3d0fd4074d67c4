"""Triton kernels of AdamW's step, which optim/engine/adamw_triton.py launches; imported only where there is Triton.

A step moves every number once in each direction: weights, gradients and both moments are read, all but the gradients
are written. Of the gradients torch's fused kernel writes the divided ones, too, where it divides.

The operations and their order are those of `adam_math` in torch's fused_adam_utils.cuh, with the fused products that
nvcc makes of them, so fp32 results should be its own to the bit: products and sums are fused here only where `fma` says
so (the launch asks for that), and roots and quotients are rounded to nearest. Where it may differ: nvcc is free not to
fuse the decay, and torch leaves out a decay of 0, which here turns an infinite weight into NaN and a weight of -0 into
0. Encoding and decoding are those of optim/engine/packed.py in the order of their operations.

Arguments of both kernels: skip, divisor: 0-d, see role_optimizer.Control. first, second: (tensors,), the corrections of
the moments' bias, 1 - beta1^t and the root of 1 - beta2^t; `which` is that of this tensor. No function has an import of
its own or a closure, which Triton's interpreter could not see.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]


@triton.jit
def updated(p, g, m, v, divisor, first, second, lr, decay, beta1, beta2, eps):
    """The weights and both moments after a step, all in fp32."""
    g = tl.div_rn(g, divisor)
    squares = g * g
    m = tl.fma(beta1, m, tl.fma(-beta1, g, g))
    v = tl.fma(beta2, v, tl.fma(-beta2, squares, squares))
    p = tl.fma(-(lr * decay), p, p)
    return p - tl.div_rn(tl.div_rn(lr, first) * m, tl.div_rn(tl.sqrt_rn(v), second) + eps), m, v


@triton.jit(do_not_specialize=["which"])
def adamw(p, g, m, v, skip, divisor, first, second, which, lr, decay, beta1, beta2, eps, numbers, BLOCK: tl.constexpr):
    """BLOCK of the numbers of a tensor, all in fp32 and side by side."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    inside = at < numbers
    old_p, grad = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    old_m, old_v = tl.load(m + at, mask=inside, other=0.0), tl.load(v + at, mask=inside, other=0.0)
    # Read before it is known whether they are wanted: a step that is skipped is rare, and waiting in turn takes time.
    keep = tl.load(skip)
    corrections = tl.load(first + which), tl.load(second + which)
    rates = lr, decay, beta1, beta2, eps
    new_p, new_m, new_v = updated(old_p, grad, old_m, old_v, tl.load(divisor), *corrections, *rates)
    if keep == 0:
        tl.store(p + at, new_p, mask=inside)
        tl.store(m + at, new_m, mask=inside)
        tl.store(v + at, new_v, mask=inside)


@triton.jit
def fourth_power(codes, LEVELS: tl.constexpr):
    """What codes from 0 on, in fp32, are times a scale."""
    x = codes * (1.0 / LEVELS)
    x = x * x
    return x * x


@triton.jit
def encoded(x, hashed, LEVELS: tl.constexpr, ROOT: tl.constexpr, HASH: tl.constexpr, HASH2: tl.constexpr):
    """(codes from 0 on in fp32, scales) of blocks of numbers from 0 on, (blocks, numbers); as packed._encode.

    hashed: what decides beside the numbers' bits which way they are rounded. ROOT: on average the square stays.
    """
    scales = tl.max(x, axis=1)
    y = tl.div_rn(x, tl.where(scales > 0.0, scales, 1.0)[:, None])
    low = tl.minimum(tl.floor(tl.sqrt_rn(tl.sqrt_rn(y)) * LEVELS), LEVELS)
    below, above = fourth_power(low, LEVELS), fourth_power(low + 1.0, LEVELS)
    if ROOT:
        y = y * y
        below = below * below
        above = above * above
    bits = x.to(tl.int32, bitcast=True) + hashed
    bits = (bits ^ (bits >> 15)) * HASH
    bits = (bits ^ (bits >> 15)) * HASH2
    chance = ((bits ^ (bits >> 15)) & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
    codes = tl.where(chance * (above - below) < y - below, low + 1.0, low)
    return tl.minimum(codes, LEVELS), scales


@triton.jit(do_not_specialize=["which", "per_row", "blocks"])
def adamw_int8(
    p,
    g,
    m,
    m_scales,
    v,
    v_scales,
    writes,
    skip,
    divisor,
    first,
    second,
    which,
    lr,
    decay,
    beta1,
    beta2,
    eps,
    width,
    per_row,
    blocks,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    SIGNED: tl.constexpr,
    UNSIGNED: tl.constexpr,
    HASH: tl.constexpr,
    HASH2: tl.constexpr,
):
    """BLOCKS blocks of a tensor with rows of `width` numbers in `per_row` blocks, with both moments in 8 bits.

    SIGNED, UNSIGNED: the largest codes of the first moment and of the root of the second, of packed.py. HASH, HASH2:
    its hashes. writes: 0-d, how often the state was written.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    place = tl.arange(0, BLOCK)
    row, column = block // per_row, (block % per_row)[:, None] * BLOCK + place[None, :]
    real, at = block < blocks, row[:, None] * width + column
    inside = real[:, None] & (column < width)
    old_p, grad = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    m_codes = tl.load(m + at, mask=inside, other=0).to(tl.float32)
    v_codes = tl.load(v + at, mask=inside, other=0).to(tl.float32)
    m_scale = tl.load(m_scales + block, mask=real, other=0.0)[:, None]
    v_scale = tl.load(v_scales + block, mask=real, other=0.0)[:, None]
    keep, hashed = tl.load(skip), (place * HASH2 + tl.load(writes) * HASH)[None, :]
    old_m = fourth_power(m_codes, SIGNED) * m_scale
    old_m = tl.where(m_codes < 0.0, -old_m, old_m)
    root = fourth_power(v_codes, UNSIGNED) * v_scale
    corrections = tl.load(first + which), tl.load(second + which)
    rates = lr, decay, beta1, beta2, eps
    new_p, new_m, new_v = updated(old_p, grad, old_m, root * root, tl.load(divisor), *corrections, *rates)
    # What is beyond the end of a row counts neither for a scale nor for anything else.
    new_m, new_v = tl.where(inside, new_m, 0.0), tl.where(inside, new_v, 0.0)
    m_new_codes, m_new_scales = encoded(tl.abs(new_m), hashed, SIGNED, False, HASH, HASH2)
    v_new_codes, v_new_scales = encoded(tl.sqrt_rn(new_v), hashed, UNSIGNED, True, HASH, HASH2)
    m_new_codes = tl.where(new_m < 0.0, -m_new_codes, m_new_codes)
    if keep == 0:
        tl.store(p + at, new_p, mask=inside)
        tl.store(m + at, m_new_codes.to(tl.int32).to(tl.int8), mask=inside)
        tl.store(v + at, v_new_codes.to(tl.int32).to(tl.uint8), mask=inside)
        tl.store(m_scales + block, m_new_scales, mask=real)
        tl.store(v_scales + block, v_new_scales, mask=real)
