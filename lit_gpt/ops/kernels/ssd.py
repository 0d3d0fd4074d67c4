"""Triton kernels of Mamba-2's scan, which ssd_triton.py launches; imported only where there is Triton.

Names as in ssd.py, and L tokens of a chunk. In a chunk, a_t is the sum of the log decays d A up to and with token t:

    h_t = exp(a_t) h_before + sum_(u <= t) exp(a_t - a_u) d_u x_u B_u^T
    y_t = exp(a_t) h_before C_t + sum_(u <= t) exp(a_t - a_u) (C_t . B_u) d_u x_u + D x_t

where no sum crosses the start of a document. Every exponent that counts is at most 0; others are never exponentiated.
Products take their operands in x's dtype and add up in fp32; all else is in fp32. States are (P, N), N side by side.

Arguments of more than one kernel: d, a: (B, H, M L), steps and sums as above, beyond the last token 0 and the last
sum. starts: (B, T), the first token of each token's document, -1 if it is a row's first one; None without documents. A
tensor's strides: its row, token and head (or group). `share`: heads of a group. `segments` of `per` chunks: parts of a
row that are gone through at once. P, N: sizes, WIDTH: channels of a program. No function has an import of its own or a
closure, which Triton's interpreter could not see.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

# No variant of a kernel for lengths that are 1 or multiples of 16.
LENGTHS = ["tokens", "heads", "share", "chunks", "per", "segments", "rows", "block", "parts"]
FORGOTTEN = tl.constexpr(-100.0)  # exp of it is 0 in fp32, but for 4e-44


@triton.jit
def decays(a, starts, m, tokens, L: tl.constexpr):
    """Of chunk m: decay from the state before it to each token, from each to its end, and through all of it.

    0 across a document's start. a, starts: those of a row and head.
    """
    t = m * L + tl.arange(0, L)
    a_L = tl.load(a + t)
    total = tl.load(a + m * L + L - 1)
    since, to_end, through = tl.exp(a_L), tl.exp(total - a_L), tl.exp(total)
    if starts is not None:
        start_L = tl.load(starts + tl.minimum(t, tokens - 1))
        last = tl.load(starts + tl.minimum(m * L + L, tokens) - 1)
        since = tl.where(start_L < m * L, since, 0.0)
        to_end = tl.where(t >= last, to_end, 0.0)
        through = tl.where(last < m * L, through, 0.0)
    return since, to_end, through


@triton.jit
def decays_within(a, starts, m, tokens, L: tl.constexpr, READER: tl.constexpr):
    """Of chunk m: from each token to each later one, (L, L); READER: the axis of the later ones."""
    t = m * L + tl.arange(0, L)
    a_L = tl.load(a + t)
    reader, read = tl.expand_dims(t, 1 - READER), tl.expand_dims(t, READER)
    counts = read <= reader
    if starts is not None:
        start_L = tl.load(starts + tl.minimum(t, tokens - 1))
        counts = counts & (read >= tl.expand_dims(start_L, 1 - READER))
    log_decay = tl.expand_dims(a_L, 1 - READER) - tl.expand_dims(a_L, READER)
    return tl.exp(tl.where(counts, log_decay, float("-inf")))


@triton.jit(do_not_specialize=LENGTHS)
def steps(dt, bias, A, d, a, row_stride, token_stride, tokens, heads, chunks, L: tl.constexpr, HEADS: tl.constexpr):
    """d and a of one chunk and HEADS heads."""
    row, m = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = m * L + tl.arange(0, L)
    inside = (t < tokens)[:, None] & (h < heads)[None, :]
    raw = tl.load(dt + row * row_stride + t.to(tl.int64)[:, None] * token_stride + h[None, :], mask=inside, other=0.0)
    z = raw.to(tl.float32) + tl.load(bias + h, mask=h < heads, other=0.0)[None, :]
    # softplus(z) = max(z, 0) + log1p(e), e = exp(-|z|), and log1p(e) = 2 artanh(s) of s = e / (2 + e), which is at
    # most 1/3: its series up to s^15 has all digits of fp32, also where e is small and log(1 + e) would lose them.
    e = tl.exp(-tl.abs(z))
    s = e / (2.0 + e)
    series = tl.zeros_like(s)
    for k in tl.static_range(8):
        series = series * (s * s) + 1.0 / (15 - 2 * k)
    step = tl.where(inside, tl.maximum(z, 0.0) + 2.0 * s * series, 0.0)
    log_decay = step * tl.load(A + h, mask=h < heads, other=0.0)[None, :]
    # A step that forgets everything need not do so more than once: sums stay small, and their differences exact.
    sums = tl.cumsum(tl.maximum(log_decay, FORGOTTEN), axis=0)
    at = (row * heads + h)[None, :] * (chunks * L) + t[:, None]
    tl.store(d + at, step, mask=(h < heads)[None, :])
    tl.store(a + at, sums, mask=(h < heads)[None, :])


@triton.jit(do_not_specialize=LENGTHS)
def forward(
    x,
    B,
    C,
    D,
    d,
    a,
    starts,
    start,
    y,
    last,
    x_row,
    x_token,
    x_head,
    B_row,
    B_token,
    B_group,
    C_row,
    C_token,
    C_group,
    tokens,
    heads,
    share,
    chunks,
    per,
    segments,
    L: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
):
    """y (B, T, H, P) of WIDTH channels of a head of one segment, from its start, and the state after it.

    start: (B, segments, H, P, N), or None for zeros; last: the same.
    """
    head, of_program = tl.program_id(0), tl.program_id(1).to(tl.int64) * heads + tl.program_id(0)
    row, segment = (tl.program_id(1) // segments).to(tl.int64), tl.program_id(1) % segments
    p, n, place = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, N), tl.arange(0, L)
    x += row * x_row + head * x_head
    B += row * B_row + head // share * B_group
    C += row * C_row + head // share * C_group
    y += (row * tokens * heads + head) * P
    d += (row * heads + head) * chunks * L
    a += (row * heads + head) * chunks * L
    if starts is not None:
        starts += row * tokens
    of_state = of_program * (P * N) + p[:, None] * N + n[None, :]
    state = tl.zeros([WIDTH, N], dtype=tl.float32) if start is None else tl.load(start + of_state)
    skip = tl.load(D + head)
    first = segment * per
    for m in range(first, tl.minimum(first + per, chunks)):
        t = m * L + place
        inside, t64 = (t < tokens)[:, None], t.to(tl.int64)[:, None]
        x_LP = tl.load(x + t64 * x_token + p[None, :], mask=inside, other=0.0)
        B_LN = tl.load(B + t64 * B_token + n[None, :], mask=inside, other=0.0)
        C_LN = tl.load(C + t64 * C_token + n[None, :], mask=inside, other=0.0)
        d_L = tl.load(d + t)
        since, to_end, through = decays(a, starts, m, tokens, L)
        # In an order that needs few registers, by ptxas, and in which products need not wait for each other.
        added = (x_LP.to(tl.float32) * (d_L * to_end)[:, None]).to(x_LP.dtype)
        before = state.to(C_LN.dtype)
        state *= through
        state = tl.dot(tl.trans(added), B_LN, state, input_precision="ieee")
        scores = tl.dot(C_LN, tl.trans(B_LN), input_precision="ieee")
        scores *= decays_within(a, starts, m, tokens, L, 0) * d_L[None, :]
        y_LP = skip * x_LP.to(tl.float32)
        y_LP = tl.dot(scores.to(x_LP.dtype), x_LP, y_LP, input_precision="ieee")
        y_LP += tl.dot(C_LN, tl.trans(before), input_precision="ieee") * since[:, None]
        tl.store(y + t64 * (heads * P) + p[None, :], y_LP.to(y.dtype.element_ty), mask=inside)
    tl.store(last + of_state, state)


@triton.jit(do_not_specialize=LENGTHS)
def states(
    x,
    B,
    d,
    a,
    starts,
    start,
    kept,
    last,
    x_row,
    x_token,
    x_head,
    B_row,
    B_token,
    B_group,
    tokens,
    heads,
    share,
    chunks,
    per,
    segments,
    BACKWARD: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
):
    """The states alone, without outputs; backward, from dy in place of x and C in place of B, their gradients.

    start, last: as in forward; kept: (B, H, M, P, N), the state before each chunk, or None.
    """
    head, of_program = tl.program_id(0), tl.program_id(1).to(tl.int64) * heads + tl.program_id(0)
    row, segment = (tl.program_id(1) // segments).to(tl.int64), tl.program_id(1) % segments
    p, n, place = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, N), tl.arange(0, L)
    x += row * x_row + head * x_head
    B += row * B_row + head // share * B_group
    d += (row * heads + head) * chunks * L
    a += (row * heads + head) * chunks * L
    if starts is not None:
        starts += row * tokens
    of_state = p[:, None] * N + n[None, :]
    of_segment = of_program * (P * N) + of_state
    state = tl.zeros([WIDTH, N], dtype=tl.float32) if start is None else tl.load(start + of_segment)
    first = segment * per
    count = tl.minimum(per, chunks - first)
    for i in range(count):
        m = first + (count - 1 - i if BACKWARD else i)
        t = m * L + place
        inside, t64 = (t < tokens)[:, None], t.to(tl.int64)[:, None]
        x_LP = tl.load(x + t64 * x_token + p[None, :], mask=inside, other=0.0)
        B_LN = tl.load(B + t64 * B_token + n[None, :], mask=inside, other=0.0)
        since, to_end, through = decays(a, starts, m, tokens, L)
        weight = since if BACKWARD else to_end * tl.load(d + t)
        if kept is not None:
            at = ((row * heads + head) * chunks + m) * (P * N)
            tl.store(kept + at + of_state, state.to(kept.dtype.element_ty))
        added = (x_LP.to(tl.float32) * weight[:, None]).to(x_LP.dtype)
        state = tl.dot(tl.trans(added), B_LN, state * through, input_precision="ieee")
    tl.store(last + of_segment, state)


@triton.jit(do_not_specialize=LENGTHS)
def inputs(
    x,
    dy,
    B,
    C,
    D,
    d,
    a,
    starts,
    after,
    dx,
    dd,
    da,
    dD,
    x_row,
    x_token,
    x_head,
    dy_row,
    dy_token,
    dy_head,
    B_row,
    B_token,
    B_group,
    C_row,
    C_token,
    C_group,
    tokens,
    heads,
    share,
    chunks,
    L: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
):
    """What x and steps get in one chunk and WIDTH channels of a head: dx (B, T, H, P).

    after: (B, H, M, P, N), the gradient of the state after each chunk. With P / WIDTH parts of a head: dd, (parts, B,
    H, M L), what d gets as a factor of x; da, the same, what a gets by d_t x_t B_t^T in the state after the chunk; dD,
    (parts, B, M, H). In (L, L), readers come second.
    """
    # Heads that share B and C follow each other, which then read them from the cache.
    head, chunk, part = tl.program_id(0) % heads, tl.program_id(0) // heads, tl.program_id(1)
    row, m = (chunk // chunks).to(tl.int64), chunk % chunks
    p, n, place = part * WIDTH + tl.arange(0, WIDTH), tl.arange(0, N), tl.arange(0, L)
    t = m * L + place
    inside, t64 = (t < tokens)[:, None], t.to(tl.int64)[:, None]
    group, of_head = head // share, (row * heads + head) * chunks
    if starts is not None:
        starts += row * tokens
    B_LN = tl.load(B + row * B_row + group * B_group + t64 * B_token + n[None, :], mask=inside, other=0.0)
    C_LN = tl.load(C + row * C_row + group * C_group + t64 * C_token + n[None, :], mask=inside, other=0.0)
    after_PN = tl.load(after + (of_head + m) * (P * N) + (p[:, None] * N + n[None, :]))
    x_LP = tl.load(x + row * x_row + head * x_head + t64 * x_token + p[None, :], mask=inside, other=0.0)
    dy_LP = tl.load(dy + row * dy_row + head * dy_head + t64 * dy_token + p[None, :], mask=inside, other=0.0)
    d_L = tl.load(d + of_head * L + t)
    _, to_end, _ = decays(a + of_head * L, starts, m, tokens, L)
    of_part = part.to(tl.int64) * tl.num_programs(0)
    at = (of_part + of_head) * L + t
    # In an order that needs few registers, by ptxas.
    skipped = tl.sum(tl.sum(dy_LP.to(tl.float32) * x_LP.to(tl.float32), axis=1), axis=0)
    tl.store(dD + of_part + tl.program_id(0), skipped)
    scores = tl.dot(B_LN, tl.trans(C_LN), input_precision="ieee")
    scores *= decays_within(a + of_head * L, starts, m, tokens, L, 1)
    products = tl.dot(x_LP, tl.trans(dy_LP), input_precision="ieee") * scores
    dd_L = tl.sum(products, axis=1)
    # A token that reads itself does so without a decay.
    products = tl.where(place[:, None] < place[None, :], products, 0.0) * d_L[:, None]
    da_L = tl.sum(products, axis=0) - tl.sum(products, axis=1)
    # Of d x: what the state after the chunk has of it, and what readers have.
    dx_LP = tl.dot(B_LN, tl.trans(after_PN), input_precision="ieee") * to_end[:, None]
    into_state = tl.sum(dx_LP * x_LP.to(tl.float32), axis=1)
    tl.store(dd + at, dd_L + into_state)
    # The chunk's last token enters the state without a decay; the others' decay ends with the chunk's.
    into_state = tl.where(t < tl.minimum(m * L + L, tokens) - 1, into_state * d_L, 0.0)
    tl.store(da + at, da_L - into_state + tl.where(place == L - 1, tl.sum(into_state, axis=0), 0.0))
    dx_LP = tl.dot(scores.to(dy_LP.dtype), dy_LP, dx_LP, input_precision="ieee")
    dx_LP = dx_LP * d_L[:, None] + tl.load(D + head) * dy_LP.to(tl.float32)
    of_dx = (row * tokens + t64) * (heads * P) + head * P + p[None, :]
    tl.store(dx + of_dx, dx_LP.to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LENGTHS)
def gradients(
    x,
    dy,
    B,
    C,
    d,
    a,
    starts,
    before,
    after,
    dB,
    dC,
    da,
    x_row,
    x_token,
    x_head,
    dy_row,
    dy_token,
    dy_head,
    B_row,
    B_token,
    B_group,
    C_row,
    C_token,
    C_group,
    rows,
    tokens,
    heads,
    share,
    chunks,
    block,
    L: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
):
    """What B and C get in one chunk from a block of heads that share them, and what decays get by being read.

    before, after: (B, H, M, P, N), the states before chunks, and gradients of those after them. dB, dC: (blocks of a
    group, B, T, G, N). da: as in inputs, the rest. In (L, L), readers come first.
    """
    row, m = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    blocks, parts = share // block, P // WIDTH
    group, which = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    n, place = tl.arange(0, N), tl.arange(0, L)
    t = m * L + place
    inside, t64 = (t < tokens)[:, None], t.to(tl.int64)[:, None]
    if starts is not None:
        starts += row * tokens
    B_LN = tl.load(B + row * B_row + group * B_group + t64 * B_token + n[None, :], mask=inside, other=0.0)
    C_LN = tl.load(C + row * C_row + group * C_group + t64 * C_token + n[None, :], mask=inside, other=0.0)
    d_dots = tl.zeros([L, L], dtype=tl.float32)
    dB_LN = tl.zeros([L, N], dtype=tl.float32)
    dC_LN = tl.zeros([L, N], dtype=tl.float32)
    first = (group * share + which * block) * parts
    for i in range(first, first + block * parts):
        head, part = i // parts, i % parts
        p = part * WIDTH + tl.arange(0, WIDTH)
        x_LP = tl.load(x + row * x_row + head * x_head + t64 * x_token + p[None, :], mask=inside, other=0.0)
        dy_LP = tl.load(dy + row * dy_row + head * dy_head + t64 * dy_token + p[None, :], mask=inside, other=0.0)
        of_head = (row * heads + head) * chunks
        of_state = (of_head + m) * (P * N) + (p[:, None] * N + n[None, :])
        before_PN, after_PN = tl.load(before + of_state), tl.load(after + of_state)
        d_L = tl.load(d + of_head * L + t)
        since, to_end, through = decays(a + of_head * L, starts, m, tokens, L)
        read = (dy_LP.to(tl.float32) * since[:, None]).to(dy_LP.dtype)
        dC_LN = tl.dot(read, before_PN, dC_LN, input_precision="ieee")
        added = (x_LP.to(tl.float32) * (to_end * d_L)[:, None]).to(x_LP.dtype)
        dB_LN = tl.dot(added, after_PN, dB_LN, input_precision="ieee")
        # The decay of the state before the chunk, through it: the sum of before * after, as the trace of a product,
        # whose operands need not be in registers; and to its readers.
        passed = tl.dot(before_PN, tl.trans(after_PN), input_precision="ieee")
        passed = tl.sum(tl.sum(tl.where(p[:, None] == p[None, :], passed, 0.0), axis=1), axis=0) * through
        y_LP = tl.dot(C_LN, tl.trans(before_PN), input_precision="ieee")
        da_L = tl.sum(y_LP * dy_LP.to(tl.float32), axis=1) * since + tl.where(place == L - 1, passed, 0.0)
        tl.store(da + (part * rows * heads * chunks + of_head) * L + t, da_L)
        weights = decays_within(a + of_head * L, starts, m, tokens, L, 0) * d_L[None, :]
        d_dots += tl.dot(dy_LP, tl.trans(x_LP), input_precision="ieee") * weights
    d_dots_LL = d_dots.to(B_LN.dtype)
    dB_LN = tl.dot(tl.trans(d_dots_LL), C_LN, dB_LN, input_precision="ieee")
    dC_LN = tl.dot(d_dots_LL, B_LN, dC_LN, input_precision="ieee")
    at = (((which * rows + row) * tokens + t64) * (heads // share) + group) * N + n[None, :]
    tl.store(dB + at, dB_LN.to(dB.dtype.element_ty), mask=inside)
    tl.store(dC + at, dC_LN.to(dC.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LENGTHS)
def steps_backward(
    dt,
    bias,
    A,
    d,
    dd,
    da,
    ddt,
    dA,
    dbias,
    row_stride,
    token_stride,
    tokens,
    heads,
    chunks,
    parts,
    L: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The gradient of dt (B, T, H), and of A and the bias what one chunk gives, (B M, H). Sums dd and da over parts."""
    row, m = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = m * L + tl.arange(0, L)
    real = (h < heads)[None, :]
    inside = (t < tokens)[:, None] & real
    raw = tl.load(dt + row * row_stride + t.to(tl.int64)[:, None] * token_stride + h[None, :], mask=inside, other=0.0)
    z = raw.to(tl.float32) + tl.load(bias + h, mask=h < heads, other=0.0)[None, :]
    at = (row * heads + h)[None, :] * (chunks * L) + t[:, None]
    of_part = (tl.num_programs(0) * L).to(tl.int64) * heads
    dd_LH = tl.zeros([L, HEADS], dtype=tl.float32)
    da_LH = tl.zeros([L, HEADS], dtype=tl.float32)
    for part in range(parts):
        dd_LH += tl.load(dd + part * of_part + at, mask=real, other=0.0)
        da_LH += tl.load(da + part * of_part + at, mask=real, other=0.0)
        da_LH += tl.load(da + (parts + part) * of_part + at, mask=real, other=0.0)
    # A step's log decay is in its own sum and in all later ones.
    d_log_decay = tl.cumsum(da_LH, axis=0, reverse=True)
    d_step = dd_LH + d_log_decay * tl.load(A + h, mask=h < heads, other=0.0)[None, :]
    dz = tl.where(inside, d_step / (1.0 + tl.exp(-z)), 0.0)
    d_LH = tl.load(d + at, mask=inside, other=0.0)
    of_step = ((row * tokens + t.to(tl.int64))[:, None] * heads) + h[None, :]
    tl.store(ddt + of_step, dz.to(ddt.dtype.element_ty), mask=inside)
    of_chunk = tl.program_id(0).to(tl.int64) * heads + h
    tl.store(dA + of_chunk, tl.sum(d_log_decay * d_LH, axis=0), mask=h < heads)
    tl.store(dbias + of_chunk, tl.sum(dz, axis=0), mask=h < heads)
