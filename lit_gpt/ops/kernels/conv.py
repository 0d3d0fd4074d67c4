"""Triton kernels of the short convolution, which conv_triton.py launches; imported only where there is Triton.

    z_t = bias + sum over lag = 0..K-1 of w_lag x_(t-lag)      y_t = z_t, or silu(z_t) = z_t s_t, s_t = 1 / (1 + e^-z_t)
    g_t = dy_t, or dy_t s_t (1 + z_t (1 - s_t))                dx_t = sum over lag of w_lag g_(t+lag)
    dw_lag = sum over t of g_t x_(t-lag)                       dbias = sum over t of g_t

where no tap counts that is of another document than its reader. A row is cut into segments of L tokens. A program goes
through S segments at once, token by token, W channels of each, and has in registers what the next tokens need: the
last K-1 inputs, and backward the gradients of the last K-1 inputs as far as they are known. So a number is read once,
but for K-1 tokens before each segment, and backward as many after it. The next U tokens are read before U tokens are
computed with, so that enough of memory is on its way. All is computed in fp32. No two programs write the same number.

Arguments of more than one kernel: widths: of the pieces that outputs come in, which lie side by side in all other
tensors; a program has channels of one. weight: (C, K), and bias: (C,), fp32. ids: (B, T), or None for rows of one
document. state: (B, K-1, C), the inputs before each row, or None for zeros. Strides: of a row and a token.
all_channels: C. per: segments of a row. Numbers of channels and strides are in units of UNIT numbers, by which a
compiler knows that it may read 16 bytes at once.
"""

from __future__ import annotations

from typing import Any

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

# No variant of a kernel for lengths that are 1 or multiples of 16; of numbers in tuples Triton makes them nevertheless.
LENGTHS = ["widths", "x_row", "x_token", "dy_rows", "dy_tokens", "rows", "tokens", "all_channels", "per"]
TO_BASE_2 = tl.constexpr(-1.4426950408889634)  # e^-z = 2^(z TO_BASE_2)


@triton.jit
def sigmoid(z):
    """1 / (1 + e^-z) of six instructions, where tl.sigmoid takes eleven; its errors are below 1e-6."""
    root = tl.rsqrt(1.0 + tl.exp2(z * TO_BASE_2))
    return root * root


@triton.jit
def of_piece(values, widths, UNIT: tl.constexpr, W: tl.constexpr):
    """The value of the piece that a program is for."""
    found, blocks = values[0], 0
    for p in tl.static_range(1, len(widths)):
        blocks += tl.cdiv(widths[p - 1] * UNIT, W)
        found = tl.where(tl.program_id(0) >= blocks, values[p], found)
    return found


@triton.jit
def channels(widths, UNIT: tl.constexpr, W: tl.constexpr):
    """The first channel of a program's piece, its width, and the program's channels in it."""
    starts, blocks = (0,), (0,)
    for p in tl.static_range(1, len(widths)):
        starts = starts + (starts[p - 1] + widths[p - 1],)
        blocks = blocks + (blocks[p - 1] + tl.cdiv(widths[p - 1] * UNIT, W),)
    block = tl.program_id(0) - of_piece(blocks, widths, UNIT, W)
    width = of_piece(widths, widths, UNIT, W) * UNIT
    return of_piece(starts, widths, UNIT, W) * UNIT, width, block * W + tl.arange(0, W)


@triton.jit
def segments(rows, per, S: tl.constexpr, L: tl.constexpr):
    """The row and first token of each segment of a program; rows beyond the last do not exist."""
    s = tl.program_id(1) * S + tl.arange(0, S)
    return (s // per).to(tl.int64), (s % per) * L


@triton.jit
def weights(weight, c, inside, K: tl.constexpr) -> Any:
    """(1, W) of each lag."""
    found = ()
    for lag in tl.static_range(K):
        found = found + (tl.load(weight + c * K + (K - 1 - lag), mask=inside, other=0.0)[None, :],)
    return found


@triton.jit
def before(x, stride, state, of_all, row, first, c, inside, K: tl.constexpr) -> Any:
    """(S, W) of each of the K-1 tokens before the segments, the nearest first. x: at their first tokens."""
    found = ()
    for lag in tl.static_range(1, K):
        tap = tl.load(x - lag * stride, mask=(first >= lag)[:, None] & inside, other=0.0)
        if state is not None:
            at = (row * (K - 1) + (K - 1 - lag))[:, None] * of_all + c[None, :]
            at_start = (first == 0)[:, None] & inside
            tap = tl.where(at_start, tl.load(state + at, mask=at_start, other=0.0), tap)
        found = found + (tap.to(tl.float32),)
    return found


@triton.jit
def ahead(x, stride, first, i, end, tokens, inside, U: tl.constexpr) -> Any:
    """(S, W) of each of U tokens from the i-th of each segment on, 0 beyond a row or the end-th."""
    found = ()
    for j in tl.static_range(U):
        exists = (first + (i + j) < tokens) & (i + j < end)
        found = found + (tl.load(x + (i + j) * stride, mask=exists[:, None] & inside, other=0.0),)
    return found


@triton.jit
def documents(ids, row, first, i, tokens, exists, STEP: tl.constexpr, COUNT: tl.constexpr) -> Any:
    """(S,) of each of so many tokens from the i-th of each segment on, by a step of 1 or -1; () without documents.

    What is before a row is of its first token's document. 32 bits of an id tell it from those beside it.
    """
    found = ()
    if ids is not None:
        for j in tl.static_range(COUNT):
            t = tl.minimum(tl.maximum(first + (i + j * STEP), 0), tokens - 1)
            found = found + (tl.load(ids + row * tokens + t, mask=exists, other=0).to(tl.int32),)
    return found


@triton.jit
def counted(x, past_ids, ids, lag: tl.constexpr):
    """x where a token `lag` ago is of the same document, else 0. ids: () without documents, else of this token."""
    if lag > 0 and len(ids) > 0:
        x = tl.where((past_ids[lag - 1] == ids[0])[:, None], x, 0.0)
    return x


@triton.jit
def weighted(taps, w, b, past_ids, ids, K: tl.constexpr):
    """z of a token."""
    z = b
    for lag in tl.static_range(K):
        z += w[lag] * counted(taps[lag], past_ids, ids, lag)
    return z


@triton.jit
def with_products(found, factors, g, past_ids, ids, K: tl.constexpr) -> Any:
    """What is found for each lag, and its factor times g where that token is of the same document."""
    more = ()
    for lag in tl.static_range(K):
        more = more + (found[lag] + factors[lag] * counted(g, past_ids, ids, lag),)
    return more


@triton.jit
def copies(x, COUNT: tl.constexpr) -> Any:
    """x, so many times."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (x,)
    return found


@triton.jit(do_not_specialize=LENGTHS)
def forward(
    x,
    weight,
    bias,
    ids,
    state,
    ys,
    widths,
    x_row,
    x_token,
    rows,
    tokens,
    all_channels,
    per,
    SILU: tl.constexpr,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    W: tl.constexpr,
    L: tl.constexpr,
    U: tl.constexpr,
):
    """y of each piece, (B, T, width), channels and tokens side by side."""
    start, width, place = channels(widths, UNIT, W)
    row, first = segments(rows, per, S, L)
    c, exists, stride = start + place, row < rows, x_token * UNIT
    inside = exists[:, None] & (place < width)[None, :]
    x += (row * x_row * UNIT + first.to(tl.int64) * stride)[:, None] + c[None, :]
    y = of_piece(ys, widths, UNIT, W) + (row * tokens + first)[:, None] * width + place[None, :]
    w = weights(weight, c, place < width, K)
    b = 0.0 if bias is None else tl.load(bias + c, mask=place < width, other=0.0)[None, :]
    past = before(x, stride, state, all_channels * UNIT, row, first, c, inside, K)
    past_ids = documents(ids, row, first, -1, tokens, exists, -1, K - 1)
    steps = tl.minimum(tokens, L)
    coming = ahead(x, stride, first, 0, steps, tokens, inside, U)
    for i in range(0, steps, U):
        now, now_ids = coming, documents(ids, row, first, i, tokens, exists, 1, U)
        coming = ahead(x, stride, first, i + U, steps, tokens, inside, U)
        for j in tl.static_range(U):
            taps, its_ids = (now[j].to(tl.float32),) + past, now_ids[j : j + 1]
            z = weighted(taps, w, b, past_ids, its_ids, K)
            if SILU:
                z *= sigmoid(z)
            exist = (first + (i + j) < tokens) & (i + j < steps)
            tl.store(y + (i + j) * width, z.to(y.dtype.element_ty), mask=exist[:, None] & inside)
            past, past_ids = taps[: K - 1], (its_ids + past_ids)[: K - 1]


@triton.jit(do_not_specialize=LENGTHS)
def backward(
    x,
    weight,
    bias,
    ids,
    state,
    dys,
    dx,
    dstate,
    sums,
    widths,
    x_row,
    x_token,
    dy_rows,
    dy_tokens,
    rows,
    tokens,
    all_channels,
    per,
    SILU: tl.constexpr,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    W: tl.constexpr,
    L: tl.constexpr,
    U: tl.constexpr,
):
    """dx (B, T, C), dstate (B, K-1, C), and what all tokens of a program add to the gradients of the bias and the
    weights, sums (programs, 1 + K, C). dys: of the pieces, in any strides.

    After the t-th token gets[lag] is what x_(t-lag) gets from the tokens up to t, and for the last lag all of it.
    """
    start, width, place = channels(widths, UNIT, W)
    row, first = segments(rows, per, S, L)
    c, exists, stride = start + place, row < rows, x_token * UNIT
    inside = exists[:, None] & (place < width)[None, :]
    of_all, dy_stride = all_channels * UNIT, of_piece(dy_tokens, widths, UNIT, W) * UNIT
    x += (row * x_row * UNIT + first.to(tl.int64) * stride)[:, None] + c[None, :]
    dy_first = row * of_piece(dy_rows, widths, UNIT, W) * UNIT + first.to(tl.int64) * dy_stride
    dy = of_piece(dys, widths, UNIT, W) + dy_first[:, None] + place[None, :]
    dx += (row * tokens + first)[:, None] * of_all + c[None, :]
    w = weights(weight, c, place < width, K)
    b = 0.0 if bias is None else tl.load(bias + c, mask=place < width, other=0.0)[None, :]
    past = before(x, stride, state, of_all, row, first, c, inside, K)
    past_ids = documents(ids, row, first, -1, tokens, exists, -1, K - 1)
    nothing = tl.zeros([S, W], dtype=tl.float32)
    dw, db, gets = copies(nothing, K), nothing, copies(nothing, K)
    steps = tl.cdiv(tl.minimum(tokens, L), U) * U
    end = steps + K - 1
    coming = ahead(x, stride, first, 0, end, tokens, inside, U)
    d_coming = ahead(dy, dy_stride, first, 0, end, tokens, inside, U)
    for after in tl.static_range(2):  # the segment, and the K-1 tokens after it, which add to no sum
        for i in range(steps * after, steps + (K - 1) * after, U):
            now, d_now, now_ids = coming, d_coming, documents(ids, row, first, i, tokens, exists, 1, U)
            coming = ahead(x, stride, first, i + U, end, tokens, inside, U)
            d_coming = ahead(dy, dy_stride, first, i + U, end, tokens, inside, U)
            for j in tl.static_range(U):
                taps, its_ids = (now[j].to(tl.float32),) + past, now_ids[j : j + 1]
                g = d_now[j].to(tl.float32)
                if SILU:
                    z = weighted(taps, w, b, past_ids, its_ids, K)
                    s = sigmoid(z)
                    g *= s * (1.0 + z * (1.0 - s))
                if after == 0:
                    dw = with_products(dw, taps, g, past_ids, its_ids, K)
                    db += g
                gets = with_products((nothing,) + gets[: K - 1], w, g, past_ids, its_ids, K)
                past, past_ids = taps[: K - 1], (its_ids + past_ids)[: K - 1]
                t, got = i + j - (K - 1), gets[K - 1].to(dx.dtype.element_ty)
                exist = (first + t < tokens) & (t >= 0) & (t < steps)
                tl.store(dx + t * of_all, got, mask=exist[:, None] & inside)
                if dstate is not None:
                    at = (row * (K - 1) + (i + j))[:, None] * of_all + c[None, :]
                    tl.store(dstate + at, got, mask=((first == 0) & (t < 0))[:, None] & inside)
    sums += tl.program_id(1).to(tl.int64) * (K + 1) * of_all + c
    tl.store(sums, tl.sum(db, axis=0), mask=place < width)
    for lag in tl.static_range(K):
        tl.store(sums + (K - lag) * of_all, tl.sum(dw[lag], axis=0), mask=place < width)
