"""Triton kernels of the gated delta rule: what both passes need, and the forward pass. delta_rule_triton.py launches
them, and those of delta_rule_backward.py; imported only where there is Triton.

Derived from the recurrence of arXiv:2412.06464, per head, with S a (K, V) matrix, k and q of norm 1 where asked for:

    S_t = exp(g_t) S_(t-1) + k_t x_t^T      x_t = beta_t (v_t - exp(g_t) S_(t-1)^T k_t)      o_t = scale S_t^T q_t

In a chunk of L tokens a_t is the sum of g up to and with token t, S the state before the chunk. What tokens write, x,
solves a unit lower triangular system, and the rest follows:

    (I + A) x = beta (v - exp(a) k S)        A_tu = beta_t exp(a_t - a_u) k_t . k_u    for u < t
    o = scale exp(a) q S + P x               P_tu = scale exp(a_t - a_u) q_t . k_u     for u <= t
    S_after = exp(a_L) S + (exp(a_L - a) k)^T x

where nothing crosses the start of a document. With T = (I + A)^-1 this is the WY form of the paper, but U = T (beta v)
and W = T (beta exp(a) k) are not made: x = T r, of r = beta (v - exp(a) k S), reads T alone, which is smaller.
Every exponent that counts is at most 0; others are never exponentiated. Products take operands in q's dtype and add up
in fp32; all else is in fp32. Norms are factors of rows, and not rounded with the keys. No two programs write the same
number.

Arguments of more than one kernel: a, starts: as in ssd.py. b, q_norm, k_norm: (B, H, M L): beta, and 1 / |q| and 1 /
|k| or 1; beyond the last token beta is 0. solution, reads: (B, H, M, L, L), T and P. written: (B, H, M L, V), x.
before: (B, H, M, K, V), S in q's dtype. Strides: of a row, token and head; k's are q's too, so that one set of
registers has the places of both. WIDTH: values of a program, or at once. No function has a closure, which Triton's
interpreter could not see.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from lit_gpt.ops.kernels.ssd import FORGOTTEN, decays, decays_within

# No variant of a kernel for lengths that are 1 or multiples of 16.
LENGTHS = ["tokens", "heads", "chunks"]
NORM_EPS = tl.constexpr(1e-6)  # linear_recurrence.NORM_EPS

# Of the products that invert I + A, where each multiplies the errors of the one before it. With nearly equal keys and
# beta near 2, operands rounded to bf16 leave T 6% off, and to tf32, of 11 bits, 0.9%; in fp32 it is 2e-6, and with
# three products of tf32 parts, which have 22 bits and still use tensor cores, 3e-6 (emulated on a CPU, L = 64, K = 32).
EXACT = tl.constexpr("tf32x3")


@triton.jit
def load_tile(x, m, stride, column, tokens, L: tl.constexpr):
    """(L, columns) of chunk m of a row and head, 0 beyond its last token.

    Its places are one long number, and short ones that are the same for all chunks.
    """
    place = tl.arange(0, L)
    at = x + tl.cast(m, tl.int64) * L * stride + (place[:, None] * stride + column[None, :])
    return tl.load(at, mask=(m * L + place < tokens)[:, None], other=0.0)


@triton.jit
def store_tile(x, m, stride, column, values, tokens, L: tl.constexpr):
    """The same, written."""
    place = tl.arange(0, L)
    at = x + tl.cast(m, tl.int64) * L * stride + (place[:, None] * stride + column[None, :])
    tl.store(at, values.to(x.dtype.element_ty), mask=(m * L + place < tokens)[:, None])


@triton.jit(do_not_specialize=LENGTHS)
def sums(
    beta,
    g,
    a,
    b,
    beta_row,
    beta_token,
    g_row,
    g_token,
    tokens,
    heads,
    chunks,
    L: tl.constexpr,
    HEADS: tl.constexpr,
):
    """a and b of one chunk and HEADS heads. beta, g: (B, T, H); g None: no decay."""
    row, m = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = m * L + tl.arange(0, L)
    inside, t64 = (t < tokens)[:, None] & (h < heads)[None, :], t.to(tl.int64)[:, None]
    at = (row * heads + h)[None, :] * (chunks * L) + t[:, None]
    beta_LH = tl.load(beta + row * beta_row + t64 * beta_token + h[None, :], mask=inside, other=0.0)
    tl.store(b + at, beta_LH.to(tl.float32), mask=(h < heads)[None, :])
    sums_LH = tl.zeros([L, HEADS], dtype=tl.float32)
    if g is not None:
        g_LH = tl.load(g + row * g_row + t64 * g_token + h[None, :], mask=inside, other=0.0).to(tl.float32)
        # A token that forgets everything need not do so more than once: sums stay small, and their differences exact.
        sums_LH = tl.cumsum(tl.maximum(g_LH, FORGOTTEN), axis=0)
    tl.store(a + at, sums_LH, mask=(h < heads)[None, :])


@triton.jit
def inverse(A_LL, L: tl.constexpr, LEVELS: tl.constexpr):
    """(I + A)^-1 of a strictly lower triangular A, L = 2^LEVELS, from the inverses of diagonal blocks of 1, 2, 4, ...:

    [[X, 0], [C, Y]]^-1 = [[X^-1, 0], [-Y^-1 C X^-1, Y^-1]], for all pairs of blocks at once as Z - Z C Z. Only numbers
    of the inverse itself occur. The terms of the series I - A + A^2 - ... cancel instead: of nearly equal keys it
    leaves nothing right even in fp32.
    """
    row, column = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    found = tl.where(row == column, 1.0, 0.0)
    for i in tl.static_range(LEVELS):
        corner = (row >> i == (column >> i) + 1) & (row >> (i + 1) == column >> (i + 1))
        corner_LL = tl.where(corner, A_LL, 0.0)
        if i == 0:
            found -= corner_LL
        else:
            product = tl.dot(found, corner_LL, input_precision=EXACT)
            found -= tl.dot(product, found, input_precision=EXACT)
    return found


@triton.jit
def norm_factors(x_LK, NORMALIZE: tl.constexpr):
    """1 / sqrt(sum(x^2) + eps) of each row, or 1."""
    x_LK = x_LK.to(tl.float32)
    squares = tl.sum(x_LK * x_LK, axis=1)
    return tl.rsqrt(squares + NORM_EPS) if NORMALIZE else squares * 0.0 + 1.0


@triton.jit(do_not_specialize=LENGTHS)
def prepare(
    q,
    k,
    a,
    b,
    starts,
    q_norm,
    k_norm,
    solution,
    reads,
    k_row,
    k_token,
    k_head,
    scale,
    tokens,
    heads,
    chunks,
    NORMALIZE: tl.constexpr,
    LEVELS: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
):
    """Of one chunk of a head what does not depend on the state: norms, T and P."""
    head, chunk = tl.program_id(0) % heads, tl.program_id(0) // heads
    row, m = (chunk // chunks).to(tl.int64), chunk % chunks
    c, place = tl.arange(0, K), tl.arange(0, L)
    t = m * L + place
    of_head = (row * heads + head) * chunks
    if starts is not None:
        starts += row * tokens
    k_LK = load_tile(k + row * k_row + head * k_head, m, k_token, c, tokens, L)
    q_LK = load_tile(q + row * k_row + head * k_head, m, k_token, c, tokens, L)
    k_factor, q_factor = norm_factors(k_LK, NORMALIZE), norm_factors(q_LK, NORMALIZE)
    tl.store(k_norm + of_head * L + t, k_factor)
    tl.store(q_norm + of_head * L + t, q_factor)
    at = (of_head + m) * (L * L) + place[:, None] * L + place[None, :]
    weights = decays_within(a + of_head * L, starts, m, tokens, L, 0) * k_factor[None, :]
    reads_LL = tl.dot(q_LK, tl.trans(k_LK), input_precision="ieee") * weights * (q_factor * scale)[:, None]
    tl.store(reads + at, reads_LL.to(reads.dtype.element_ty))
    overlaps = tl.dot(k_LK, tl.trans(k_LK), input_precision="ieee") * weights
    overlaps *= (tl.load(b + of_head * L + t) * k_factor)[:, None]
    solution_LL = inverse(tl.where(place[:, None] > place[None, :], overlaps, 0.0), L, LEVELS)
    tl.store(solution + at, solution_LL.to(solution.dtype.element_ty))


@triton.jit(do_not_specialize=LENGTHS)
def forward(
    q,
    k,
    v,
    a,
    b,
    starts,
    q_norm,
    k_norm,
    solution,
    reads,
    start,
    o,
    last,
    written,
    before,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    scale,
    tokens,
    heads,
    chunks,
    L: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Along a row, WIDTH values of a head: o (B, T, H, V) and the last state; or with o None, written and before.

    start: (B, H, K, V), or None for zeros; last: the same.
    """
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, place, w = tl.arange(0, K), tl.arange(0, L), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    q += row * k_row + head * k_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    of_head = (row * heads + head) * chunks
    if starts is not None:
        starts += row * tokens
    of_state, square = c[:, None] * V + w[None, :], place[:, None] * L + place[None, :]
    of_row = (row * heads + head) * (K * V) + of_state
    state = tl.zeros([K, WIDTH], dtype=tl.float32) if start is None else tl.load(start + of_row)
    for m in range(chunks):
        at = of_head * L + m * L + place
        k_LK = load_tile(k, m, k_token, c, tokens, L)
        v_LV = load_tile(v, m, v_token, w, tokens, L)
        solution_LL = tl.load(solution + (of_head + m) * (L * L) + square)
        k_factor, b_L = tl.load(k_norm + at), tl.load(b + at)
        since, to_end, through = decays(a + of_head * L, starts, m, tokens, L)
        before_KV = state.to(k_LK.dtype)
        predicted = tl.dot(k_LK, before_KV, input_precision="ieee") * (since * k_factor)[:, None]
        right = ((v_LV.to(tl.float32) - predicted) * b_L[:, None]).to(k_LK.dtype)
        x_LV = tl.dot(solution_LL, right, input_precision="ieee")
        if o is None:
            tl.store(before + (of_head + m) * (K * V) + of_state, before_KV)
            store_tile(written + of_head * (L * V), m, V, w, x_LV, chunks * L, L)
        else:
            q_LK = load_tile(q, m, k_token, c, tokens, L)
            reads_LL = tl.load(reads + (of_head + m) * (L * L) + square)
            o_LV = tl.dot(q_LK, before_KV, input_precision="ieee")
            o_LV *= (since * tl.load(q_norm + at) * scale)[:, None]
            o_LV = tl.dot(reads_LL, x_LV.to(reads_LL.dtype), o_LV, input_precision="ieee")
            store_tile(o + (row * tokens * heads + head) * V, m, heads * V, w, o_LV, tokens, L)
        added = (x_LV * (to_end * k_factor)[:, None]).to(k_LK.dtype)
        state = tl.dot(tl.trans(k_LK), added, state * through, input_precision="ieee")
    if last is not None:
        tl.store(last + of_row, state)
