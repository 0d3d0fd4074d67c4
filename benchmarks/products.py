"""What the matrix products of a transformer reach by themselves, in every layout: the limit of a step in bf16.

    python benchmarks/products.py --sizes 8:16,16:8,24:4 --output docs/benchmarks/products_h200.json

A GPU that does nothing but products stays at its power limit, so a rate here is that of a long run of one product.
Each runs for a while without a wait: forward, the gradient of its input and that of its weight, with the weight as it
is stored (a row for each output) and transposed; the gradient of a weight also as its transpose. If all layouts of a
product reach the same, no other choice of them makes a step faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sizes import CONTEXT, VOCAB

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.utils.files import write_text


def main(sizes: str = "8:16,16:8,24:4", seconds: float = 0.12, heat: float = 4.0, output: str | None = None) -> None:
    """Time the products of a layer and of the head, and print a table.

    Args:
        sizes: comma-separated depth:micro_bsz pairs, at contexts of 4096 tokens.
        seconds: how long each product runs.
        heat: seconds of products before, in which the GPU comes to its power limit.
        output: JSON file for the rows.
    """
    warm_up(heat)
    rows: list[dict[str, Any]] = []
    print(f"{'':<8}{'map':<10}{'product':<22}{'weight':<14}{'ms':>8}{'TFLOP/s':>9}")
    for depth, micro_bsz in ((int(d), int(m)) for d, m in (pair.split(":") for pair in sizes.split(","))):
        for shape in maps(depth):
            for row in measure(shape, micro_bsz * CONTEXT, seconds):
                rows.append({"depth": depth, "micro_bsz": micro_bsz, **row})
                text = f"d{depth:<7}{row['map']:<10}{row['product']:<22}{row['layout']:<14}"
                print(f"{text}{row['ms']:>8.3f}{row['tflops']:>9.0f}", flush=True)
    if output:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
        write_text(Path(output), json.dumps(facts, indent=1) + "\n")


answer_early(__name__, reader_of(main))

import torch
from torch import Tensor

from lit_gpt import architectures

CHUNK = 16384  # tokens whose logits the loss holds at once


class Map(NamedTuple):
    """A linear map of a model."""

    name: str
    outputs: int
    inputs: int


def maps(depth: int) -> list[Map]:
    """Of a layer of our transformer, and its head."""
    c = architectures.build("transformer", depth)
    joined, middle = (c.n_head + 2 * c.n_kv_head) * c.head_dim, c.n_head * c.head_dim
    layer = [Map("qkv", joined, c.n_embd), Map("out", c.n_embd, middle), Map("gate", c.intermediate_size, c.n_embd)]
    return [*layer, Map("down", c.n_embd, c.intermediate_size), Map("head", VOCAB, c.n_embd)]


def warm_up(seconds: float) -> None:
    """Products until the clock is what it will be."""
    x, end = random(8192, 8192), time.monotonic() + seconds
    while time.monotonic() < end:
        torch.mm(x, x)
        torch.cuda.synchronize()


def measure(shape: Map, tokens: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each product and layout of one map."""
    tokens = min(tokens, CHUNK) if shape.name == "head" else tokens
    x, w, dy = random(tokens, shape.inputs), random(shape.outputs, shape.inputs), random(tokens, shape.outputs)
    across = w.t().contiguous()
    ways: list[tuple[str, str, Callable[[], Tensor]]] = [
        ("y = x W^T", "as stored", lambda: x @ w.t()),
        ("y = x W^T", "transposed", lambda: x @ across),
        ("dx = dy W", "as stored", lambda: dy @ w),
        ("dx = dy W", "transposed", lambda: dy @ across.t()),
        ("dW = dy^T x", "as stored", lambda: dy.t() @ x),
        ("dW = dy^T x", "transposed", lambda: x.t() @ dy),
    ]
    operations = 2 * tokens * shape.outputs * shape.inputs
    rows = []
    for product, layout, run in ways:
        ms = milliseconds_of_many(run, seconds)
        rows.append(
            {"map": shape.name, "product": product, "layout": layout, "ms": ms, "tflops": operations / ms / 1e9}
        )
    return rows


def random(*shape: int) -> Tensor:
    """Power depends on the bits: those of a normal distribution are like a model's, zeros would cost less."""
    return torch.randn(*shape, device="cuda").bfloat16()


def milliseconds_of_many(run: Callable[[], Any], seconds: float) -> float:
    """Mean of as many runs in a row as take about that long."""
    few = timed(run, 5)
    return timed(run, max(int(1e3 * seconds / few), 5))


def timed(run: Callable[[], Any], times: int) -> float:
    """Milliseconds of one of so many, after three others."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        run()
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


if __name__ == "__main__":
    run_command(command_of(main))
