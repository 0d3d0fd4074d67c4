"""Triton kernels of the gated delta rule's backward pass. Names and arguments as in delta_rule.py.

With dx and dS_after what x and the state get (do, the gradient of o, is multiplied by P and q as it is):

    dx = P^T do + (exp(a_L - a) k) dS_after      dr = T^T dx      dA = -dr x^T      dP = do x^T      dv = beta dr
    dS = exp(a_L) dS_after - (beta exp(a) k)^T dr + (scale exp(a) q)^T do

so that an inverse asks for one more product with it and not for its own gradient. With x and dr of all chunks, S and
dS_after, the gradients of q, k, beta and the sums a are products within each chunk.

d_right: (B, H, M L, V), dr. after: (B, H, M, K, V), dS_after, both in q's dtype.

No product has an operand that was computed by another one and then transposed: Triton 3.4 to 3.7.0 compiles that
wrongly for sm_90 (issue 640 of flash-linear-attention). What is to be transposed comes from memory.

In `pairs` and `gradients` products of one turn of the loop may still read shared memory when the copies of a later turn
begin. What they read therefore has no other use in the loop: a sum of elements is the diagonal of one more product. For
a tile that is an operand and is read into registers too, Triton 3.6 has a buffer too few (its issue 6691), so that it
is overwritten while a product reads it, which is rare and depends on what else a processor runs.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from lit_gpt.ops.kernels.delta_rule import load_tile, store_tile
from lit_gpt.ops.kernels.ssd import decays, decays_within

LENGTHS = ["tokens", "heads", "chunks"]  # as in delta_rule.py


@triton.jit(do_not_specialize=LENGTHS)
def backward(
    q,
    k,
    do,
    a,
    b,
    starts,
    q_norm,
    k_norm,
    solution,
    reads,
    dlast,
    dv,
    d_right,
    after,
    dstart,
    k_row,
    k_token,
    k_head,
    do_row,
    do_token,
    do_head,
    scale,
    tokens,
    heads,
    chunks,
    L: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Along a row from its end, WIDTH values of a head: dv (B, T, H, V), d_right, after, and what the first state gets.

    dlast: (B, H, K, V), or None for zeros; dstart: the same.
    """
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, place, w = tl.arange(0, K), tl.arange(0, L), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    q += row * k_row + head * k_head
    k += row * k_row + head * k_head
    do += row * do_row + head * do_head
    of_head = (row * heads + head) * chunks
    if starts is not None:
        starts += row * tokens
    of_state, square = c[:, None] * V + w[None, :], place[:, None] * L + place[None, :]
    of_row = (row * heads + head) * (K * V) + of_state
    dstate = tl.zeros([K, WIDTH], dtype=tl.float32) if dlast is None else tl.load(dlast + of_row)
    for i in range(chunks):
        m = chunks - 1 - i
        at = of_head * L + m * L + place
        k_LK = load_tile(k, m, k_token, c, tokens, L)
        q_LK = load_tile(q, m, k_token, c, tokens, L)
        do_LV = load_tile(do, m, do_token, w, tokens, L)
        solution_LL = tl.load(solution + (of_head + m) * (L * L) + square)
        reads_LL = tl.load(reads + (of_head + m) * (L * L) + square)
        k_factor, b_L = tl.load(k_norm + at), tl.load(b + at)
        since, to_end, through = decays(a + of_head * L, starts, m, tokens, L)
        after_KV = dstate.to(k_LK.dtype)
        tl.store(after + (of_head + m) * (K * V) + of_state, after_KV)
        dx_LV = tl.dot(k_LK, after_KV, input_precision="ieee") * (to_end * k_factor)[:, None]
        dx_LV = tl.dot(tl.trans(reads_LL), do_LV, dx_LV, input_precision="ieee")
        dr_LV = tl.dot(tl.trans(solution_LL), dx_LV.to(k_LK.dtype), input_precision="ieee")
        store_tile(d_right + of_head * (L * V), m, V, w, dr_LV, chunks * L, L)
        dv_LV = dr_LV * b_L[:, None]
        store_tile(dv + (row * tokens * heads + head) * V, m, heads * V, w, dv_LV, tokens, L)
        # What the state loses to the prediction, and what queries read of it.
        predicted = (dv_LV * (-since * k_factor)[:, None]).to(k_LK.dtype)
        read = (do_LV.to(tl.float32) * (since * tl.load(q_norm + at) * scale)[:, None]).to(k_LK.dtype)
        dstate = tl.dot(tl.trans(k_LK), predicted, dstate * through, input_precision="ieee")
        dstate = tl.dot(tl.trans(q_LK), read, dstate, input_precision="ieee")
    if dstart is not None:
        tl.store(dstart + of_row, dstate)


@triton.jit(do_not_specialize=LENGTHS)
def pairs(
    q,
    k,
    v,
    do,
    a,
    b,
    starts,
    q_norm,
    k_norm,
    written,
    d_right,
    d_overlaps,
    d_reads,
    da,
    db,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    do_row,
    do_token,
    do_head,
    scale,
    tokens,
    heads,
    chunks,
    L: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What products of a chunk's keys with each other and with its queries get, as they are in memory: (B, H, M, L, L).

    da, db: (B, H, M L), what a and beta get by these products, and beta as a factor of v.
    """
    head, chunk = tl.program_id(0) % heads, tl.program_id(0) // heads
    row, m = (chunk // chunks).to(tl.int64), chunk % chunks
    c, place = tl.arange(0, K), tl.arange(0, L)
    t, of_head = m * L + place, (row * heads + head) * chunks
    at = of_head * L + t
    if starts is not None:
        starts += row * tokens
    v += row * v_row + head * v_head
    do += row * do_row + head * do_head
    dP_LL = tl.zeros([L, L], dtype=tl.float32)
    dA_LL = tl.zeros([L, L], dtype=tl.float32)
    by_v = tl.zeros([L, L], dtype=tl.float32)
    for part in range(V // WIDTH):
        w = part * WIDTH + tl.arange(0, WIDTH)
        v_LV = load_tile(v, m, v_token, w, tokens, L)
        do_LV = load_tile(do, m, do_token, w, tokens, L)
        x_LV = load_tile(written + of_head * (L * V), m, V, w, chunks * L, L)
        dr_LV = load_tile(d_right + of_head * (L * V), m, V, w, chunks * L, L)
        dP_LL = tl.dot(do_LV, tl.trans(x_LV), dP_LL, input_precision="ieee")
        dA_LL = tl.dot(dr_LV, tl.trans(x_LV), dA_LL, input_precision="ieee")
        by_v = tl.dot(dr_LV, tl.trans(v_LV), by_v, input_precision="ieee")
    db_L = tl.sum(tl.where(place[:, None] == place[None, :], by_v, 0.0), axis=1)
    weights = decays_within(a + of_head * L, starts, m, tokens, L, 0)
    square = (of_head + m) * (L * L) + place[:, None] * L + place[None, :]
    earlier = place[:, None] > place[None, :]
    b_L, k_factor, q_factor = tl.load(b + at), tl.load(k_norm + at), tl.load(q_norm + at) * scale
    weights *= k_factor[None, :]
    dA_LL = tl.where(earlier, -dA_LL * weights, 0.0) * k_factor[:, None]
    dP_LL *= weights * q_factor[:, None]
    tl.store(d_reads + square, dP_LL.to(d_reads.dtype.element_ty))
    tl.store(d_overlaps + square, (dA_LL * b_L[:, None]).to(d_overlaps.dtype.element_ty))
    k_LK = load_tile(k + row * k_row + head * k_head, m, k_token, c, tokens, L)
    q_LK = load_tile(q + row * k_row + head * k_head, m, k_token, c, tokens, L)
    dA_LL *= tl.dot(k_LK, tl.trans(k_LK), input_precision="ieee")
    tl.store(db + at, db_L + tl.sum(dA_LL, axis=1))
    # A token that reads itself does so without a decay.
    dP_LL *= tl.dot(q_LK, tl.trans(k_LK), input_precision="ieee")
    decayed = dA_LL * b_L[:, None] + tl.where(earlier, dP_LL, 0.0)
    tl.store(da + at, tl.sum(decayed, axis=1) - tl.sum(decayed, axis=0))


@triton.jit(do_not_specialize=LENGTHS)
def gradients(
    q,
    k,
    do,
    a,
    b,
    starts,
    q_norm,
    k_norm,
    written,
    d_right,
    before,
    after,
    d_overlaps,
    d_reads,
    dq,
    dk,
    da,
    db,
    k_row,
    k_token,
    k_head,
    do_row,
    do_token,
    do_head,
    scale,
    tokens,
    heads,
    chunks,
    L: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
):
    """What PART channels of q and k with their norms get in one chunk, over these norms: dq, dk (B, H, M L, K) in fp32.

    da, db: (K / PART, B, H, M L), what a and beta get by products with states.
    """
    parts: tl.constexpr = K // PART
    part, program = tl.program_id(0) % parts, tl.program_id(0) // parts  # those of a head read the same values
    head, chunk = program % heads, program // heads
    row, m = (chunk // chunks).to(tl.int64), chunk % chunks
    c, place = part * PART + tl.arange(0, PART), tl.arange(0, L)
    t, of_head = m * L + place, (row * heads + head) * chunks
    at = of_head * L + t
    if starts is not None:
        starts += row * tokens
    do += row * do_row + head * do_head
    by_right = tl.zeros([L, PART], dtype=tl.float32)
    by_output = tl.zeros([L, PART], dtype=tl.float32)
    by_written = tl.zeros([L, PART], dtype=tl.float32)
    passed = tl.zeros([PART, PART], dtype=tl.float32)
    for i in range(V // WIDTH):
        w = i * WIDTH + tl.arange(0, WIDTH)
        of_state = (of_head + m) * (K * V) + c[:, None] * V + w[None, :]
        before_KV, after_KV = tl.load(before + of_state), tl.load(after + of_state)
        do_LV = load_tile(do, m, do_token, w, tokens, L)
        x_LV = load_tile(written + of_head * (L * V), m, V, w, chunks * L, L)
        dr_LV = load_tile(d_right + of_head * (L * V), m, V, w, chunks * L, L)
        by_right = tl.dot(dr_LV, tl.trans(before_KV), by_right, input_precision="ieee")
        by_output = tl.dot(do_LV, tl.trans(before_KV), by_output, input_precision="ieee")
        by_written = tl.dot(x_LV, tl.trans(after_KV), by_written, input_precision="ieee")
        passed = tl.dot(before_KV, tl.trans(after_KV), passed, input_precision="ieee")
    of_end = tl.sum(tl.sum(tl.where(c[:, None] == c[None, :], passed, 0.0), axis=1), axis=0)
    since, to_end, through = decays(a + of_head * L, starts, m, tokens, L)
    b_L, k_factor, q_factor = tl.load(b + at), tl.load(k_norm + at), tl.load(q_norm + at) * scale
    k_LK = load_tile(k + row * k_row + head * k_head, m, k_token, c, tokens, L)
    q_LK = load_tile(q + row * k_row + head * k_head, m, k_token, c, tokens, L)
    # Keys predict, and are lost with what they predict; queries read; keys write. Each with what a and beta get.
    predicted = tl.sum(by_right * k_LK.to(tl.float32), axis=1) * (-since * k_factor)
    read = tl.sum(by_output * q_LK.to(tl.float32), axis=1) * (since * q_factor)
    wrote = tl.sum(by_written * k_LK.to(tl.float32), axis=1) * (to_end * k_factor)
    # The chunk's last token enters the state without a decay; the others' decay ends with the chunk's.
    wrote = tl.where(t < tl.minimum(m * L + L, tokens) - 1, wrote, 0.0)
    of_end = tl.sum(wrote, axis=0) + of_end * through
    of_part = part.to(tl.int64) * (tl.num_programs(0) // parts) * L
    tl.store(db + of_part + at, predicted)
    tl.store(da + of_part + at, predicted * b_L + read - wrote + tl.where(place == L - 1, of_end, 0.0))
    square = (of_head + m) * (L * L) + place[:, None] * L + place[None, :]
    dP_LL = tl.load(d_reads + square)
    dq_LK = tl.dot(dP_LL, k_LK, by_output * (since * q_factor)[:, None], input_precision="ieee")
    store_tile(dq + of_head * (L * K), m, K, c, dq_LK, chunks * L, L)
    dk_LK = by_written * (to_end * k_factor)[:, None] - by_right * (b_L * since * k_factor)[:, None]
    dk_LK = tl.dot(tl.trans(dP_LL), q_LK, dk_LK, input_precision="ieee")
    dA_LL = tl.load(d_overlaps + square)
    dk_LK = tl.dot(dA_LL, k_LK, dk_LK, input_precision="ieee")
    dk_LK = tl.dot(tl.trans(dA_LL), k_LK, dk_LK, input_precision="ieee")
    store_tile(dk + of_head * (L * K), m, K, c, dk_LK, chunks * L, L)


@triton.jit(do_not_specialize=LENGTHS)
def norms_backward(
    x,
    norm,
    d,
    dx,
    x_row,
    x_token,
    x_head,
    tokens,
    heads,
    chunks,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
):
    """dx (B, T, H, K) of ROWS tokens of a head: with y = n x and n = 1 / sqrt(sum(x^2) + eps), n dy - y (y . n dy).

    d: n dy, (B, H, M L, K), which is dx where nothing is normalised.
    """
    head, block = tl.program_id(0) % heads, tl.program_id(0) // heads
    blocks = chunks * L // ROWS
    row, i = (block // blocks).to(tl.int64), block % blocks
    c, t, of_head = tl.arange(0, K), i * ROWS + tl.arange(0, ROWS), (row * heads + head) * chunks * L
    d_RK = load_tile(d + of_head * K, i, K, c, chunks * L, ROWS)
    if NORMALIZE:
        factor = tl.load(norm + of_head + t)[:, None]
        x_RK = load_tile(x + row * x_row + head * x_head, i, x_token, c, tokens, ROWS).to(tl.float32) * factor
        d_RK -= x_RK * tl.sum(x_RK * d_RK, axis=1)[:, None]
    store_tile(dx + (row * tokens * heads + head) * K, i, heads * K, c, d_RK, tokens, ROWS)


@triton.jit(do_not_specialize=LENGTHS)
def sums_backward(da, db, dbeta, dg, tokens, heads, chunks, COUNT: tl.constexpr, L: tl.constexpr, HEADS: tl.constexpr):
    """The gradients of beta and g (B, T, H), of one chunk and HEADS heads. da, db: (COUNT, B, H, M L), to be added up.

    dg None: no decay.
    """
    row, m = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = m * L + tl.arange(0, L)
    real = (h < heads)[None, :]
    at = (row * heads + h)[None, :] * (chunks * L) + t[:, None]
    of_sum = (tl.num_programs(0) * L).to(tl.int64) * heads
    da_LH = tl.zeros([L, HEADS], dtype=tl.float32)
    db_LH = tl.zeros([L, HEADS], dtype=tl.float32)
    for i in tl.static_range(COUNT):
        db_LH += tl.load(db + i * of_sum + at, mask=real, other=0.0)
        if dg is not None:
            da_LH += tl.load(da + i * of_sum + at, mask=real, other=0.0)
    inside, of_token = (t < tokens)[:, None] & real, (row * tokens + t)[:, None] * heads + h[None, :]
    tl.store(dbeta + of_token, db_LH.to(dbeta.dtype.element_ty), mask=inside)
    if dg is not None:
        # A token's log decay is in its own sum and in all later ones.
        tl.store(dg + of_token, tl.cumsum(da_LH, axis=0, reverse=True).to(dg.dtype.element_ty), mask=inside)
