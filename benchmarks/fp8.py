"""Where a step in 8 bits spends its time: products by kind, and casts, at the sizes of one layer.

    python benchmarks/fp8.py --width 2048 --tokens 32768 --output fp8.json

Products are those of the feed-forward network's first map: forward, the gradient of its input, that of its weight; in
bf16, and in 8 bits with and without fast sums, with one scale and with one for each row. Casts are those of
lit_gpt/ops/fp8_cast.py at several sizes of tiles, beside what torch.compile makes of the plain form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.utils.files import write_text


def main(width: int = 2048, hidden: int = 0, tokens: int = 32768, output: str | None = None) -> None:
    """Time products and casts, and print a table.

    Args:
        width: width of the model.
        hidden: rows of the map; default 8 times the width, gate and up of SwiGLU together.
        tokens: tokens of a micro-batch.
        output: JSON file for the rows.
    """
    hidden = hidden or 8 * width
    rows = products(tokens, width, hidden) + casts(tokens, width) + casts(tokens, hidden)
    for row in rows:
        rate = f"{row['tflops']:,.0f} TFLOP/s" if "tflops" in row else f"{row['gb_per_s']:,.0f} GB/s"
        print(f"{row['what']:<24}{row['way']:<28}{row['ms']:>9.3f} ms {rate:>16}")
    if output:
        write_text(Path(output), json.dumps(rows, indent=1) + "\n")


answer_early(__name__, reader_of(main))

import torch
from timing import milliseconds
from torch import Tensor

from lit_gpt.ops import fp8_cast
from lit_gpt.ops.fp8 import E4M3, E5M2, product

TILES = ((64, 64, 4), (64, 128, 4), (64, 128, 8), (128, 128, 4), (128, 128, 8), (32, 256, 4), (128, 64, 4))


def products(tokens: int, width: int, hidden: int) -> list[dict[str, Any]]:
    """A row for each kind and way of product."""
    sizes = {
        "y = x W^T": (tokens, hidden, width, E4M3),
        "dx = dy W": (tokens, width, hidden, E5M2),
        "dW = dy^T x": (hidden, width, tokens, E5M2),
    }
    rows = []
    for name, (m, n, k, dtype) in sizes.items():
        a, b = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
        rows.append(_row(name, "bf16", lambda a=a, b=b: a @ b.t(), m * n * k))
        one, by_row = [torch.ones(1, device="cuda") for _ in "ab"], [torch.ones(s, device="cuda") for s in (m, n)]
        for scales, way, left in ((one, "tensorwise", dtype), (by_row, "rowwise", E4M3)):
            a8, b8 = a.to(left), b.to(E4M3)
            for fast in (True, False):
                out = torch.float32 if name.startswith("dW") else torch.bfloat16
                run = _product(a8, scales[0], b8, scales[1], out, fast)
                rows.append(_row(name, f"{way}, {'fast' if fast else 'exact'} sums", run, m * n * k))
    return rows


def _product(*arguments: Any) -> Callable[[], Tensor]:
    return lambda: product(*arguments)


def _row(what: str, way: str, run: Callable[[], Any], multiplications: float) -> dict[str, Any]:
    try:
        ms = milliseconds(run, torch.device("cuda"), steps=30, warmup=5)
    except RuntimeError as refused:  # of a way that this cuBLAS does not have
        return {"what": what, "way": f"{way}: {str(refused).splitlines()[0]}", "ms": 0.0, "tflops": 0.0}
    return {"what": what, "way": way, "ms": ms, "tflops": 2e-9 * multiplications / ms}


def casts(tokens: int, width: int) -> list[dict[str, Any]]:
    """A row for each size of tiles, and one for the compiler's form."""
    x, one = torch.randn(tokens, width, device="cuda").bfloat16(), torch.ones(1, device="cuda")

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = fp8_cast.saturated(x.float() * one, E4M3)
        return rows, rows.t().contiguous()

    def by_kernel(x: Tensor) -> tuple[Tensor, Tensor]:
        return fp8_cast.cast([x], one, one, E4M3)

    compiled, rows, usual = torch.compile(plain), [], (fp8_cast.TILE_ROWS, fp8_cast.TILE_COLUMNS, fp8_cast.WARPS)
    ways: dict[str, tuple[Callable[[Tensor], Any], tuple[int, int, int]]] = {"compiled": (compiled, usual)}
    ways |= {f"tiles of {r} x {c}, {w} warps": (by_kernel, (r, c, w)) for r, c, w in TILES}
    for name, (run, tile) in ways.items():
        fp8_cast.TILE_ROWS, fp8_cast.TILE_COLUMNS, fp8_cast.WARPS = tile
        ms = milliseconds(lambda run=run: run(x), torch.device("cuda"), steps=30, warmup=5)
        rows.append({"what": f"cast {tokens} x {width}", "way": name, "ms": ms, "gb_per_s": 4e-6 * x.numel() / ms})
    fp8_cast.TILE_ROWS, fp8_cast.TILE_COLUMNS, fp8_cast.WARPS = usual
    return rows


if __name__ == "__main__":
    run_command(command_of(main))
