"""Scans of Mamba and Mamba-2 and the gated delta rule: each kernel's time and errors, and that of memory traffic alone.

    python benchmarks/scan.py --output docs/benchmarks/scan_h200.json
    python benchmarks/scan.py --shapes delta:16x4096x3x256x512,delta:8x4096x6x256x512 --output delta.json

Shapes are rows x tokens x channels for the selective scan, half of those of a layer of `sambay`, with 16 states; rows x
tokens x heads x channels of a head x states for Mamba-2's, of layers of `mamba2`; and "delta:" with rows x tokens x
heads x keys x values for the gated delta rule, of layers of `gdny`: micro-batches at depth 8 and 16, and for the first
two one long row, in bf16. Every kernel has its inputs in the layout that it reads. Errors are
|found - exact| / |exact| (Frobenius norms) on the first rows and tokens, where exact is the plain backend on the same
rounded inputs in float64. Traffic is a copy of as many bytes as a scan must read and write: its inputs and its output,
and backward the inputs, the output's gradient, and theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command


def main(
    shapes: str = "16x4096x1024,8x4096x2048,1x131072x1024,16x4096x16x64x128,8x4096x32x64x128,1x131072x16x64x128,"
    "delta:16x4096x3x256x512,delta:8x4096x6x256x512",
    backends: str | None = None,
    output: str | None = None,
) -> None:
    """Time the kernels of the scans of Mamba and Mamba-2 and of the gated delta rule, and compare them with float64.

    Args:
        shapes: comma-separated, three numbers for the selective scan, five for Mamba-2's and, behind "delta:", for the
            delta rule; see the top of the file.
        backends: comma-separated rows of BACKENDS in lit_gpt/ops/selective_scan.py, ssd.py or delta_rule.py;
            "mamba_ssm:64" is ssd.py's with 64 tokens in a chunk. Default: all kernels of each, mamba_ssm with three
            sizes of chunks; of the delta rule, plain torch too.
        output: JSON file for the rows, written after each shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "states": STATES, "judged": JUDGED}
    found: list[dict[str, Any]] = []
    print(HEADER)
    for shape in shapes.split(","):
        tensors = draw(shape, device)
        bounds = {f"{way}_traffic_ms": traffic(tensors, way == "backward", device) for way in ("forward", "backward")}
        for backend in (backends or BACKENDS[operation(tensors)]).split(","):
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
from torch.nn import functional as F

from lit_gpt.nn.linear import laid_along_time
from lit_gpt.ops import ssd as ssd_file
from lit_gpt.ops.delta_rule import delta_rule
from lit_gpt.ops.selective_scan import reads_along_time, selective_scan
from lit_gpt.ops.ssd import ssd

STATES = 16  # of the selective scan
DELTA = "delta:"  # before the sizes of a gated delta rule
AT_ONCE = 10  # calls between two looks at the clock, so that what Python does between them is not in the time
JUDGED = (1, 4096)  # rows and tokens that are compared with float64, whose states are large
BACKENDS = {
    "selective_scan": "mamba_ssm,cuda",
    "ssd": "mamba_ssm:64,mamba_ssm:128,mamba_ssm:256,triton",
    "delta_rule": "triton,fla,fla_kda,plain",
}
GRADIENTS = ("x", "dt", "A", "B", "C", "D", "dt_bias")
DELTA_GRADIENTS = ("q", "k", "v", "beta", "g")
HEADER = (
    f"{'shape':<26}{'backend':<14}{'forward':>9}{'traffic':>9}{'backward':>10}{'traffic':>9}{'output':>10}  gradients"
)


def draw(shape: str, device: torch.device) -> list[Tensor]:
    """The inputs of a scan, with the time steps of a new model: softplus(-7 to -2) or so. Some are parts of one."""
    rows, tokens, *sizes = map(int, shape.removeprefix(DELTA).split("x"))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(rows, tokens, *sizes, device=device).bfloat16()

    dt_bias = -7 + 5 * torch.rand(sizes[0], device=device)
    if shape.startswith(DELTA):
        heads, keys, values = sizes
        parts = normal(heads * (2 * keys + values)).split((heads * keys, heads * keys, heads * values), dim=2)
        g = -F.softplus(normal(heads).float() + dt_bias) * (0.01 + 16 * torch.rand(heads, device=device))
        return [*(x.unflatten(2, (heads, -1)) for x in parts), 2 * torch.sigmoid(normal(heads).float()), g]
    if len(sizes) == 1:
        (channels,), rank = sizes, max(sizes[0] // 32 - 1, 1)
        x, dt = normal(channels), normal(channels)
        _, B, C = normal(rank + 2 * STATES).split((rank, STATES, STATES), dim=2)
        A = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
    else:
        channels, width, states = sizes
        x, B, C = normal(channels * width + 2 * states).split((channels * width, states, states), dim=2)
        x, dt, B, C = x.unflatten(2, (channels, width)), normal(channels), B[:, :, None], C[:, :, None]
        A = -1 - 15 * torch.rand(channels, device=device)
    return [x, dt, A, B, C, torch.ones(channels, device=device), dt_bias]


def operation(tensors: list[Tensor]) -> str:
    if len(tensors) == len(DELTA_GRADIENTS):
        return "delta_rule"
    return "ssd" if tensors[0].ndim == 4 else "selective_scan"


def scan(tensors: list[Tensor], backend: str) -> Tensor:
    """The output. backend: a row of the operation's table; "mamba_ssm:64" has 64 tokens in a chunk."""
    name, _, chunk = backend.partition(":")
    if operation(tensors) == "delta_rule":
        return delta_rule(*tensors, normalize=True, backend=name)[0]
    if operation(tensors) == "selective_scan":
        return selective_scan(*tensors, backend=name)[0]
    ssd_file.KERNEL_CHUNK = int(chunk or 256)
    return ssd(*tensors, backend=name)[0]


def leaves_of(tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """As leaves, in the layout that the backend reads."""
    if operation(tensors) == "selective_scan" and reads_along_time(tensors[0], STATES, None, None, backend):
        tensors = [laid_along_time(t) if t.ndim == 3 else t for t in tensors]
    return [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]


def times(tensors: list[Tensor], backend: str, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward pass, and of a backward pass: what both take less the former."""
    leaves = leaves_of(tensors, backend)
    dy = torch.randn_like(scan(leaves, backend))

    def forward() -> None:
        for _ in range(AT_ONCE):
            scan(leaves, backend)

    def both() -> None:
        for _ in range(AT_ONCE):
            torch.autograd.grad(scan(leaves, backend), leaves, dy)

    one, two = (milliseconds(run, device) / AT_ONCE for run in (forward, both))
    return {"forward_ms": one, "backward_ms": two - one}


def results(tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    leaves = leaves_of(tensors, backend, dtype)
    y = scan(leaves, backend)
    dy = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device).bfloat16()
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def errors(tensors: list[Tensor], backend: str) -> dict[str, float]:
    """Of the output and of each gradient, and whether a second run has the same bits."""
    rows, tokens = JUDGED
    some = [t[:rows, :tokens] if t.ndim > 2 else t for t in tensors]
    found, again = results(some, backend), results(some, backend)
    exact = results(some, "plain", torch.float64)
    names = DELTA_GRADIENTS if operation(tensors) == "delta_rule" else GRADIENTS
    named = dict(zip(("output", *names), map(error, found, exact)))
    return {**named, "repeats": float(all(map(torch.equal, found, again)))}


def traffic(tensors: list[Tensor], backward: bool, device: torch.device) -> float:
    """Milliseconds to copy as many bytes as a pass must move, half of them read and half written."""
    y = tensors[2] if operation(tensors) == "delta_rule" else tensors[0]  # what is as large as the output
    read = [*(t for t in tensors if t.ndim > 2), y]
    moved = sum(t.nbytes for t in read) + (sum(t.nbytes for t in read[:-1]) if backward else 0)
    memory = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    other = torch.empty_like(memory)

    def run() -> None:
        for _ in range(AT_ONCE):
            other.copy_(memory)

    return milliseconds(run, device) / AT_ONCE


def line(r: dict[str, Any]) -> str:
    """One row as text."""
    start = f"{r['shape']:<26}{r['backend']:<14}"
    if "failed" in r:
        return start + "  " + r["failed"][:90]
    columns = ("forward_ms", "forward_traffic_ms", "backward_ms", "backward_traffic_ms")
    times = "".join(f"{r[name]:>{width}.3f}" for name, width in zip(columns, (9, 9, 10, 9)))
    gradients = " ".join(f"{name} {r[name]:.1e}" for name in (*GRADIENTS, *DELTA_GRADIENTS) if name in r)
    repeats = "" if r["repeats"] else "; a second run differs"
    return start + times + f"{r['output']:>10.1e}  {gradients}{repeats}"


if __name__ == "__main__":
    run_command(command_of(main))
