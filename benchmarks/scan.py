"""Scans of Mamba and Mamba-2, the gated delta rule and the short convolution: each kernel's time and errors, and the
time of memory traffic alone.

    python benchmarks/scan.py --output docs/benchmarks/scan_h200.json
    python benchmarks/scan.py --shapes delta:16x4096x3x256x512,delta:8x4096x6x256x512 --output delta.json
    python benchmarks/scan.py --shapes conv:8x4096x4352,conv:8x4096x4096x128x128 --output conv.json

Shapes are rows x tokens x channels for the selective scan, half of those of a layer of `sambay`, with 16 states; rows x
tokens x heads x channels of a head x states for Mamba-2's, of layers of `mamba2`; "delta:" with rows x tokens x
heads x keys x values for the gated delta rule, of layers of `gdny`; and "conv:" with rows x tokens x channels for the
short convolution with a width of 4, a bias and silu, where several numbers of channels are pieces as `mamba2` has them:
micro-batches at depth 8 and 16, and for the first two one long row, in bf16. Every kernel has its inputs in the layout
that it reads. Errors are |found - exact| / |exact| (Frobenius norms) on the first rows and tokens, where exact is the
plain backend on the same rounded inputs in float64. Traffic is a copy of as many bytes as an operation must read and
write: its inputs and its output, and backward the inputs, the output's gradient, and theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command


def main(
    shapes: str = "16x4096x1024,8x4096x2048,1x131072x1024,16x4096x16x64x128,8x4096x32x64x128,1x131072x16x64x128,"
    "delta:16x4096x3x256x512,delta:8x4096x6x256x512,conv:16x4096x2304,conv:8x4096x4352,conv:8x4096x4096x128x128",
    backends: str | None = None,
    output: str | None = None,
) -> None:
    """Time the kernels of the scans of Mamba and Mamba-2, the gated delta rule and the short convolution, and compare
    them with float64.

    Args:
        shapes: comma-separated, three numbers for the selective scan, five for Mamba-2's and, behind "delta:", for the
            delta rule, three or more behind "conv:" for the convolution; see the top of the file.
        backends: comma-separated rows of BACKENDS in lit_gpt/ops/selective_scan.py, ssd.py, delta_rule.py or conv.py;
            "mamba_ssm:64" is ssd.py's with 64 tokens in a chunk, "plain:compiled" plain torch in a compiled block.
            Default: all kernels of each, mamba_ssm with three sizes of chunks; of the delta rule, plain torch too, and
            of the convolution compiled.
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
                row |= {**times(shape, tensors, backend, device), **errors(shape, tensors, backend)}
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
from lit_gpt.ops.conv import causal_conv_pieces
from lit_gpt.ops.delta_rule import delta_rule
from lit_gpt.ops.selective_scan import reads_along_time, selective_scan
from lit_gpt.ops.ssd import ssd

STATES = 16  # of the selective scan
DELTA, CONV = "delta:", "conv:"  # before the sizes of a gated delta rule or a convolution
TAPS = 4  # of the convolution
AT_ONCE = 10  # calls between two looks at the clock, so that what Python does between them is not in the time
JUDGED = (1, 4096)  # rows and tokens that are compared with float64, whose states are large
BACKENDS = {
    "selective_scan": "mamba_ssm,cuda",
    "ssd": "mamba_ssm:64,mamba_ssm:128,mamba_ssm:256,triton",
    "delta_rule": "triton,fla,fla_kda,plain",
    "conv": "triton,causal_conv1d,fla,plain:compiled",
}
GRADIENTS = ("x", "dt", "A", "B", "C", "D", "dt_bias")
DELTA_GRADIENTS = ("q", "k", "v", "beta", "g")
CONV_GRADIENTS = ("x", "weight", "bias")
HEADER = (
    f"{'shape':<27}{'backend':<15}{'forward':>9}{'traffic':>9}{'backward':>10}{'traffic':>9}{'output':>10}  gradients"
)


def numbers(shape: str) -> list[int]:
    return [int(n) for n in shape.removeprefix(DELTA).removeprefix(CONV).split("x")]


def draw(shape: str, device: torch.device) -> list[Tensor]:
    """The inputs of a scan, with the time steps of a new model: softplus(-7 to -2) or so. Some are parts of one."""
    rows, tokens, *sizes = numbers(shape)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(rows, tokens, *sizes, device=device).bfloat16()

    dt_bias = -7 + 5 * torch.rand(sizes[0], device=device)
    if shape.startswith(DELTA):
        heads, keys, values = sizes
        parts = normal(heads * (2 * keys + values)).split((heads * keys, heads * keys, heads * values), dim=2)
        g = -F.softplus(normal(heads).float() + dt_bias) * (0.01 + 16 * torch.rand(heads, device=device))
        return [*(x.unflatten(2, (heads, -1)) for x in parts), 2 * torch.sigmoid(normal(heads).float()), g]
    if shape.startswith(CONV):
        channels = sum(sizes)
        return [normal(channels), torch.randn(channels, TAPS, device=device) / TAPS, dt_bias.new_zeros(channels)]
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
    if len(tensors) in (len(DELTA_GRADIENTS), len(CONV_GRADIENTS)):
        return "delta_rule" if len(tensors) == len(DELTA_GRADIENTS) else "conv"
    return "ssd" if tensors[0].ndim == 4 else "selective_scan"


def scan(shape: str, tensors: list[Tensor], backend: str) -> Sequence[Tensor]:
    """The outputs. backend: a row of the operation's table; "mamba_ssm:64" has 64 tokens in a chunk."""
    name, _, how = backend.partition(":")
    if operation(tensors) == "conv":
        run = compiled_convolution if how == "compiled" else convolution
        return run(tensors, numbers(shape)[2:], name)
    if operation(tensors) == "delta_rule":
        return [delta_rule(*tensors, normalize=True, backend=name)[0]]
    if operation(tensors) == "selective_scan":
        return [selective_scan(*tensors, backend=name)[0]]
    ssd_file.KERNEL_CHUNK = int(how or 256)
    return [ssd(*tensors, backend=name)[0]]


def convolution(tensors: list[Tensor], widths: list[int], backend: str) -> Sequence[Tensor]:
    x, weight, bias = tensors
    return causal_conv_pieces(x, widths, weight[:, None], bias, activation="silu", backend=backend)[0]


compiled_convolution = torch.compile(convolution, dynamic=False)


def leaves_of(tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """As leaves, in the layout that the backend reads."""
    if operation(tensors) == "selective_scan" and reads_along_time(tensors[0], STATES, None, None, backend):
        tensors = [laid_along_time(t) if t.ndim == 3 else t for t in tensors]
    return [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]


def times(shape: str, tensors: list[Tensor], backend: str, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward pass, and of a backward pass: what both take less the former."""
    leaves = leaves_of(tensors, backend)
    dys = [torch.randn_like(y) for y in scan(shape, leaves, backend)]

    def forward() -> None:
        for _ in range(AT_ONCE):
            scan(shape, leaves, backend)

    def both() -> None:
        for _ in range(AT_ONCE):
            torch.autograd.grad(scan(shape, leaves, backend), leaves, dys)

    one, two = (milliseconds(run, device) / AT_ONCE for run in (forward, both))
    return {"forward_ms": one, "backward_ms": two - one}


def results(shape: str, tensors: list[Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The outputs as one, and every gradient."""
    leaves = leaves_of(tensors, backend, dtype)
    y = torch.cat(list(scan(shape, leaves, backend)), dim=-1)
    dy = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device).bfloat16()
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def errors(shape: str, tensors: list[Tensor], backend: str) -> dict[str, float]:
    """Of the output and of each gradient, and whether a second run has the same bits."""
    rows, tokens = JUDGED
    some = [t[:rows, :tokens] if t.ndim > 2 else t for t in tensors]
    found, again = results(shape, some, backend), results(shape, some, backend)
    exact = results(shape, some, "plain", torch.float64)
    names = {"delta_rule": DELTA_GRADIENTS, "conv": CONV_GRADIENTS}.get(operation(tensors), GRADIENTS)
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
    start = f"{r['shape']:<27}{r['backend']:<15}"
    if "failed" in r:
        return start + "  " + r["failed"][:90]
    columns = ("forward_ms", "forward_traffic_ms", "backward_ms", "backward_traffic_ms")
    times = "".join(f"{r[name]:>{width}.3f}" for name, width in zip(columns, (9, 9, 10, 9)))
    names = (*GRADIENTS, *DELTA_GRADIENTS, *CONV_GRADIENTS)
    gradients = " ".join(f"{name} {r[name]:.1e}" for name in dict.fromkeys(names) if name in r)
    repeats = "" if r["repeats"] else "; a second run differs"
    return start + times + f"{r['output']:>10.1e}  {gradients}{repeats}"


if __name__ == "__main__":
    run_command(command_of(main))
