"""The Triton kernel that expert_rows.py launches; imported only where there is Triton."""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]


@triton.jit
def spread(x, places, out, width, K: tl.constexpr, WIDTH: tl.constexpr):
    """One token's row, or WIDTH columns of it, to each of its K places."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    row = tl.load(x + token * width + column, mask=inside)
    for j in tl.static_range(K):
        place = tl.load(places + token * K + j).to(tl.int64)
        tl.store(out + place * width + column, row, mask=inside)
