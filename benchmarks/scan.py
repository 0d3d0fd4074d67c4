"""Mamba's selective scan: each kernel's time and errors, beside the time that memory traffic alone takes.

    python benchmarks/scan.py --output docs/benchmarks/scan_h200.json

Shapes are rows x tokens x channels: the micro-batches of depth 8 and 16 with half of the channels of a layer of
`sambay`, and one long row; 16 states, bf16. Every kernel has its inputs in the layout that it reads. Errors are
|found - exact| / |exact| (Frobenius norms) on the first rows and tokens, where exact is the plain backend on the same
rounded inputs in float64. Traffic is a copy of as many bytes as a scan must read and write: x, dt and y, and backward
x, dt, dy, dx and ddt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command


def main(
    shapes: str = "16x4096x1024,8x4096x2048,1x131072x1024",
    backends: str = "mamba_ssm,cuda",
    output: str | None = None,
) -> None:
    """Time the kernels of the selective scan, and compare them with float64.

    Args:
        shapes: comma-separated rows x tokens x channels.
        backends: comma-separated rows of lit_gpt.ops.selective_scan.BACKENDS.
        output: JSON file for the rows, written after each shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "states": STATES, "judged": JUDGED}
    found: list[dict[str, Any]] = []
    print(HEADER)
    for shape in shapes.split(","):
        rows, tokens, channels = map(int, shape.split("x"))
        tensors = draw(rows, tokens, channels, device)
        bounds = {"forward_traffic_ms": traffic(tensors, 3, device), "backward_traffic_ms": traffic(tensors, 5, device)}
        for backend in backends.split(","):
            row: dict[str, Any] = {"shape": shape, "backend": backend, **bounds}
            try:
                row |= {**times(tensors, backend, device), **errors(tensors, backend)}
            except Exception as failure:  # one kernel that fails must not lose the other rows
                row["failed"] = f"{type(failure).__name__}: {failure}".split("\n")[0]
            found.append(row)
            print(line(row), flush=True)
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")


answer_early(__name__, reader_of(main))

import torch
from kernels import error
from timing import milliseconds
from torch import Tensor

from lit_gpt.nn.linear import laid_along_time
from lit_gpt.ops.selective_scan import reads_along_time, selective_scan

STATES = 16
AT_ONCE = 10  # calls between two looks at the clock, so that what Python does between them is not in the time
JUDGED = (1, 4096)  # rows and tokens that are compared with float64, whose states are large
GRADIENTS = ("x", "dt", "A", "B", "C", "D", "dt_bias")
HEADER = (
    f"{'shape':<20}{'backend':<12}{'forward':>9}{'traffic':>9}{'backward':>10}{'traffic':>9}{'output':>10}  gradients"
)


def draw(rows: int, tokens: int, channels: int, device: torch.device) -> list[Tensor]:
    """The inputs of a scan, with the time steps of a new model: softplus(-7 to -2) or so. B, C are parts of one."""
    x, dt = (torch.randn(rows, tokens, channels, device=device).bfloat16() for _ in range(2))
    rank = max(channels // 32 - 1, 0)
    parts = torch.randn(rows, tokens, rank + 2 * STATES, device=device).bfloat16()
    _, B, C = parts.split((rank, STATES, STATES), dim=2)
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
    dt_bias = -7 + 5 * torch.rand(channels, device=device)
    return [x, dt, A, B, C, torch.ones(channels, device=device), dt_bias]


def leaves_of(tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """As leaves, in the layout that the backend reads."""
    along = reads_along_time(tensors[0], STATES, None, None, backend)
    laid = [laid_along_time(t) if along and t.ndim == 3 else t for t in tensors]
    return [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in laid]


def times(tensors: list[Tensor], backend: str, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward pass, and of a backward pass: what both take less the former."""
    leaves = leaves_of(tensors, backend)
    dy = torch.randn_like(selective_scan(*leaves, backend=backend)[0])

    def forward() -> None:
        for _ in range(AT_ONCE):
            selective_scan(*leaves, backend=backend)

    def both() -> None:
        for _ in range(AT_ONCE):
            torch.autograd.grad(selective_scan(*leaves, backend=backend)[0], leaves, dy)

    one, two = (milliseconds(run, device) / AT_ONCE for run in (forward, both))
    return {"forward_ms": one, "backward_ms": two - one}


def results(tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    leaves = leaves_of(tensors, backend, dtype)
    y, _ = selective_scan(*leaves, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device).bfloat16()
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def errors(tensors: list[Tensor], backend: str) -> dict[str, float]:
    """Of the output and of each gradient, and whether a second run has the same bits."""
    rows, tokens = JUDGED
    some = [t[:rows, :tokens] if t.ndim == 3 else t for t in tensors]
    found, again = results(some, backend), results(some, backend)
    exact = results(some, "plain", torch.float64)
    named = dict(zip(("output", *GRADIENTS), map(error, found, exact)))
    return {**named, "repeats": float(all(map(torch.equal, found, again)))}


def traffic(tensors: list[Tensor], copies: int, device: torch.device) -> float:
    """Milliseconds to move as many bytes as `copies` tensors of x's size have, half of them read and half written."""
    memory = torch.empty(copies * tensors[0].numel() // 2, dtype=tensors[0].dtype, device=device)
    other = torch.empty_like(memory)

    def run() -> None:
        for _ in range(AT_ONCE):
            other.copy_(memory)

    return milliseconds(run, device) / AT_ONCE


def line(r: dict[str, Any]) -> str:
    """One row as text."""
    start = f"{r['shape']:<20}{r['backend']:<12}"
    if "failed" in r:
        return start + "  " + r["failed"][:90]
    columns = ("forward_ms", "forward_traffic_ms", "backward_ms", "backward_traffic_ms")
    times = "".join(f"{r[name]:>{width}.3f}" for name, width in zip(columns, (9, 9, 10, 9)))
    gradients = " ".join(f"{name} {r[name]:.1e}" for name in GRADIENTS)
    repeats = "" if r["repeats"] else "; a second run differs"
    return start + times + f"{r['output']:>10.1e}  {gradients}{repeats}"


if __name__ == "__main__":
    run_command(command_of(main))
