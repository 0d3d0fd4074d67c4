"""The cast of a scaled matrix to 8 bits, in both layouts at once: plain torch, and one Triton kernel on a GPU.

The kernel reads a matrix once and writes it twice, as it stands and transposed. A compiler's own kernels write the
transposed one in strips of a byte, and would keep more of the forward pass for backward than the 8 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_gpt.ops.backends import optional

TILE_ROWS, TILE_COLUMNS, WARPS = 64, 128, 8  # the fastest of those that benchmarks/fp8.py tries, on an H200


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a format of 8 bits, to nearest even; beyond its largest number, that one. NaN stays NaN."""
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


@torch.library.custom_op("lit_gpt::cast_fp8", mutates_args=())
def cast(pieces: list[Tensor], row_factor: Tensor, col_factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (M, N) times row_factor, (M,) or (1,), as it stands (M, N); times col_factor, (N,) or (1,), transposed (N, M).

    pieces: x, in pieces (M, N_i) that lie side by side.
    """
    if pieces[0].is_cuda:
        return _cast_on_gpu(pieces, row_factor, col_factor, dtype)
    x_MN = torch.cat(pieces, dim=1).float()
    rows = saturated(x_MN * row_factor.view(-1, 1), dtype)
    return rows, saturated((x_MN * col_factor).t().contiguous(), dtype)


@cast.register_fake
def _(pieces: list[Tensor], row_factor: Tensor, col_factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, columns = pieces[0].shape[0], sum(p.shape[1] for p in pieces)
    return pieces[0].new_empty(rows, columns, dtype=dtype), pieces[0].new_empty(columns, rows, dtype=dtype)


def _cast_on_gpu(
    pieces: list[Tensor], row_factor: Tensor, col_factor: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    height, width, column = pieces[0].shape[0], sum(p.shape[1] for p in pieces), 0
    rows = pieces[0].new_empty(height, width, dtype=dtype)
    cols = pieces[0].new_empty(width, height, dtype=dtype)
    for piece in pieces:
        own = piece.shape[1]
        # Tiles of one column of tiles follow each other, so that neighbours write to the same lines of `cols`.
        grid = (-(-height // TILE_ROWS), -(-own // TILE_COLUMNS))
        cast_kernel()[grid](
            piece,
            row_factor,
            col_factor[column:] if col_factor.numel() > 1 else col_factor,
            rows[:, column:],
            cols[column:],
            height,
            own,
            *piece.stride(),
            width,
            int(row_factor.numel() > 1),
            int(col_factor.numel() > 1),
            LARGEST=torch.finfo(dtype).max,
            ROWS=TILE_ROWS,
            COLUMNS=TILE_COLUMNS,
            num_warps=WARPS,
        )
        column += own
    return rows, cols


@cache
def cast_kernel() -> Any:
    """The kernel; made at the first call, since Triton is only there with CUDA."""
    triton, tl = optional("triton"), optional("triton.language")

    @triton.jit
    def kernel(
        x,
        row_factor,
        col_factor,
        rows,
        cols,
        height,
        own,
        row_stride,
        col_stride,
        width,
        row_step,
        col_step,
        LARGEST: tl.constexpr,  # type: ignore
        ROWS: tl.constexpr,  # type: ignore
        COLUMNS: tl.constexpr,  # type: ignore
    ):
        """One tile of one piece. row_step, col_step: 1 where a factor is for every row or column, 0 where for all."""
        m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (m < height)[:, None] & (n < own)[None, :]
        v = tl.load(x + m[:, None] * row_stride + n[None, :] * col_stride, mask=inside).to(tl.float32)
        by_row = v * tl.load(row_factor + m * row_step, mask=m < height)[:, None]
        by_col = v * tl.load(col_factor + n * col_step, mask=n < own)[None, :]
        by_row = tl.clamp(by_row, -LARGEST, LARGEST, tl.PropagateNan.ALL)
        by_col = tl.clamp(by_col, -LARGEST, LARGEST, tl.PropagateNan.ALL)
        tl.store(rows + m[:, None] * width + n[None, :], by_row.to(rows.dtype.element_ty), mask=inside)
        flipped = tl.trans(by_col.to(cols.dtype.element_ty))
        tl.store(cols + n[:, None] * height + m[None, :], flipped, mask=tl.trans(inside))

    return kernel
