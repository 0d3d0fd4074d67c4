"""The selective scan's own CUDA kernels, selective_scan.cu, as torch operations, which a compiled block may contain.

One block goes through the tokens of 64 channels of one row. Where that leaves a GPU idle, few rows that are long, each
row is cut into segments: first what every segment adds to the state, then all segments at once from their true states.

Shapes: B batch, T tokens, C channels, N states per channel; R rows of the kernels, B times segments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.ops import nvrtc
from lit_gpt.ops.backends import Memory, refuse_transforms
from lit_gpt.ops.segments import count, processors, true_states

STATES = (8, 16, 32)  # per channel
TYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float"}
OLDEST = (8, 0)  # compute capability with copies to shared memory that do not wait, and bfloat16

CHANNELS = 64  # of a block, in selective_scan.cu
TILE = 32  # tokens at once in shared memory; forward keeps the state before each
SUB = 8  # tokens whose states are in registers in backward
BLOCKS_PER_PROCESSOR = 2  # that fit at once, by their shared memory and registers
SHORTEST = 512  # tokens of a segment
POINTERS = ("x", "dt", "B", "C", "dy", "A", "D", "bias", "state", "starts", "saved", "y", "last", "total", "dlast")
POINTERS += ("dx", "ddt", "dBC", "dA", "dD", "dbias", "dstate")
STRIDED = ("x", "dt", "B", "C", "dy")


class Arguments(ctypes.Structure):
    """Of every kernel; selective_scan.cu has the shapes."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((f"{name}_{of}", ctypes.c_longlong) for name in STRIDED for of in ("row", "token")),
        *((name, ctypes.c_int) for name in ("length", "channels", "segments", "aligned")),
    )


def scan(
    x_BTC: Tensor,
    dt_BTC: Tensor,
    A_CN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_C: Tensor,
    dt_bias_C: Tensor,
    starts_BT: Tensor | None,
    state_BCN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See selective_scan. starts: where documents start, or None."""
    dt, B, C = (t.to(x_BTC.dtype) for t in (dt_BTC, B_BTN, C_BTN))
    A, D, bias = (t.float() for t in (A_CN, D_C, dt_bias_C))
    state = None if state_BCN is None else state_BCN.float()
    inputs = (x_BTC, dt, A, B, C, D, bias)
    refuse_transforms("The selective scan's CUDA kernels", *inputs, state)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, state) if t is not None)
    y_BTC, last_BCN, _ = scan_forward(*inputs, starts_BT, state, keep, _segments(x_BTC))
    return y_BTC, last_BCN


def memory(channels: int, states: int) -> Memory:
    """Kept: a state for each tile. Made: what each block adds to the gradients of B and C, and their sums. In fp32."""
    return Memory(4 * channels * states / TILE, 4 * 2 * states * (-(-channels // CHANNELS) + 1))


def _segments(x_BTC: Tensor) -> int:
    """Into how many each row is cut; they are of one length."""
    batch, length, channels = x_BTC.shape
    room = processors(x_BTC.device) * BLOCKS_PER_PROCESSOR
    return count(batch * -(-channels // CHANNELS), room, lambda n: length % n == 0 and length >= n * SHORTEST)


def _outputs(x: Tensor, A: Tensor, keep: bool, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = x.shape
    tiles = -(-(length // segments) // TILE)
    kept = (batch * segments if keep else 0, tiles, *A.shape)
    return x.new_empty(x.shape), A.new_empty(batch, *A.shape), A.new_empty(kept)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    starts: Tensor | None,
    state: Tensor | None,
    keep: bool,
    segments: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, C), the last state (B, C, N), and if `keep`, for backward, the state before each tile (R, M, C, N)."""
    y, last, saved = _outputs(x, A, keep, segments)
    tensors = {"x": x, "dt": dt, "B": B, "C": C, "A": A, "D": D, "bias": bias, "starts": starts}
    _check({**tensors, "first state": state})
    if segments == 1:
        launch("scan_forward", segments, **tensors, state=state, y=y, last=last, saved=saved if keep else None)
        return y, last, saved
    ends, total = A.new_empty(len(x), segments, *A.shape), A.new_empty(len(x), segments, len(A))
    launch("scan_ends", segments, **tensors, last=ends, total=total)
    start = true_states(ends, (total[..., None] * A).exp(), state)
    launch("scan_forward", segments, **tensors, state=start, y=y, last=ends, saved=saved if keep else None)
    return y, last.copy_(ends[:, -1]), saved


def _check(tensors: dict[str, Tensor | None]) -> None:
    """The kernels are given addresses alone, and would read beside a tensor of another shape, or on another device."""
    x, A = tensors["x"], tensors["A"]
    assert x is not None and A is not None
    (batch, length, channels), states = x.shape, A.shape[1]
    of_states, of_channels = (batch, length, states), (channels,)
    shapes = {"dt": x.shape, "A": (channels, states), "B": of_states, "C": of_states, "D": of_channels}
    shapes |= {"bias": of_channels, "starts": (batch, length), "first state": (batch, channels, states)}
    for name, shape in shapes.items():
        if (t := tensors[name]) is not None:
            assert t.shape == shape and t.device == x.device, f"{name} is {tuple(t.shape)} on {t.device}, not {shape}"


def backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    starts: Tensor | None,
    saved: Tensor,
    segments: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, A, B, C, D, bias and the first state, of those of y and the last state."""
    (batch, length, channels), (_, states) = x.shape, A.shape
    dx, ddt = x.new_empty(x.shape), x.new_empty(x.shape)
    dBC = A.new_empty(-(-channels // CHANNELS), batch, length, 2, states)
    dA, dstate = (A.new_empty(batch, segments, channels, states) for _ in range(2))
    dD, dbias = (A.new_empty(batch, segments, channels) for _ in range(2))
    tensors = {"x": x, "dt": dt, "B": B, "C": C, "dy": dy, "A": A, "D": D, "bias": bias, "starts": starts}
    if segments > 1:
        dlast = _last_gradients(dlast, tensors, segments)
    found = {"dx": dx, "ddt": ddt, "dBC": dBC, "dA": dA, "dD": dD, "dbias": dbias, "dstate": dstate}
    launch("scan_backward", segments, **tensors, dlast=dlast, saved=saved, **found)
    # Copies, since operations may not return two parts of one tensor.
    dB, dC = (t.to(x.dtype, copy=True, memory_format=torch.contiguous_format) for t in dBC.sum(0).unbind(2))
    return dx, ddt, dA.sum((0, 1)), dB, dC, dD.sum((0, 1)), dbias.sum((0, 1)), dstate[:, 0].contiguous()


def _last_gradients(dlast: Tensor | None, tensors: dict[str, Tensor | None], segments: int) -> Tensor:
    """The gradient of the state after each segment, (B, segments, C, N)."""
    x, A = tensors["x"], tensors["A"]
    assert x is not None and A is not None
    local, total = A.new_empty(len(x), segments, *A.shape), A.new_empty(len(x), segments, len(A))
    launch("scan_carries", segments, **tensors, dstate=local, total=total)
    return true_states(local, (total[..., None] * A).exp(), dlast, backward=True)


scan_forward = torch.library.custom_op("lit_gpt::selective_scan", forward, mutates_args=())
scan_backward = torch.library.custom_op("lit_gpt::selective_scan_backward", backward, mutates_args=())


@scan_forward.register_fake
def _(x, dt, A, B, C, D, bias, starts, state, keep, segments):
    return _outputs(x, A, keep, segments)


@scan_backward.register_fake
def _(dy, dlast, x, dt, A, B, C, D, bias, starts, saved, segments):
    return (*(t.new_empty(t.shape) for t in (x, dt, A, B, C, D, bias)), A.new_empty(len(x), *A.shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, state, _, ctx.segments = inputs
    saved = output[2]
    ctx.save_for_backward(*tensors, saved)
    ctx.state = state is not None
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    *found, dstate = scan_backward(dy, dlast, *tensors, saved, ctx.segments)
    return (*found, None, dstate if ctx.state else None, None, None)


scan_forward.register_autograd(_gradients, setup_context=_setup)


def launch(kernel: str, segments: int, **tensors: Tensor | None) -> None:
    """One kernel over all rows. tensors: by their names in Arguments."""
    given = {name: _readable(name, t) for name, t in tensors.items() if t is not None}
    x, A = given["x"], given["A"]
    batch, length, channels = x.shape
    run = _kernel(kernel, x, A.shape[1])
    grid = (-(-channels // CHANNELS), batch * segments)
    if batch:  # a grid without blocks is an error
        run(grid, 8 * A.shape[1], _arguments(given, length // segments, channels, segments))


def _readable(name: str, t: Tensor) -> Tensor:
    """As the kernels read it: of x, dt, B, C and dy any rows and tokens whose numbers lie side by side.

    B and C are often parts of one projection that begin anywhere. Copied, they can be read 16 bytes at once, and so can
    all else. One number at a time, the kernels took 1.6 times as long in a profile of training.
    """
    anywhere = not _by_16_bytes(t) and t.shape[-1] * t.element_size() % 16 == 0
    return t if name in STRIDED and t.stride(2) == 1 and not anywhere else t.contiguous()


def _by_16_bytes(t: Tensor) -> bool:
    """Whether each token's numbers begin and end where 16 bytes do."""
    sizes = (n * t.element_size() for n in (*t.stride()[:-1], t.shape[-1]))
    return not any(n % 16 for n in (t.data_ptr(), *sizes))


def _arguments(given: dict[str, Tensor], length: int, channels: int, segments: int) -> Arguments:
    arguments = Arguments(length=length, channels=channels, segments=segments)
    for name, t in given.items():
        setattr(arguments, name, t.data_ptr())
    strided = {name: given[name] for name in STRIDED if name in given}
    for name, t in strided.items():
        setattr(arguments, f"{name}_row", t.stride(0))
        setattr(arguments, f"{name}_token", t.stride(1))
    arguments.aligned = all(map(_by_16_bytes, strided.values()))
    return arguments


def _kernel(name: str, x: Tensor, states: int) -> Callable[[tuple[int, int], int, Arguments], None]:
    return nvrtc.load(source(x.dtype, states), _names(x.dtype, states), x.device.index)[name]


def _names(dtype: torch.dtype, states: int) -> tuple[tuple[str, int], ...]:
    """Each kernel with its bytes of shared memory."""
    forward, backward = shared_bytes(dtype, states)
    return (("scan_forward", forward), ("scan_ends", forward), ("scan_backward", backward), ("scan_carries", backward))


def shared_bytes(dtype: torch.dtype, states: int) -> tuple[int, int]:
    """Of ForwardMemory in selective_scan.cu, and of BackwardMemory in selective_scan_backward.cu."""
    wide, narrow, threads = TILE * CHANNELS, TILE * states, 8 * states
    forward = 4 * (3 * wide + 2 * narrow) + dtype.itemsize * (2 * wide + 2 * narrow)
    backward = 4 * (6 * wide + 16 + 2 * 4 * narrow + threads // 32 * 2 * narrow) + 16 * 2 * TILE // SUB * threads
    return forward, backward + dtype.itemsize * (3 * wide + 2 * narrow)


@cache
def source(dtype: torch.dtype, states: int) -> str:
    """The whole source for one type and number of states."""
    return _text("primitives.cuh") + kernels(dtype, states)


def kernels(dtype: torch.dtype, states: int) -> str:
    """Without what it asks of a GPU beyond C++."""
    numbers = dict(zip(("FORWARD_BYTES", "BACKWARD_BYTES"), shared_bytes(dtype, states)))
    numbers |= {"N": states, "TILE": TILE, "SUB": SUB}
    given = "".join(f"constexpr int {name} = {number};\n" for name, number in numbers.items())
    return f"using T = {TYPES[dtype]};\n{given}{_text('selective_scan.cu')}{_text('selective_scan_backward.cu')}"


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def refuses(dtype: torch.dtype, states: int) -> str:
    """Why a GPU cannot run it, or "". Compiles it, the first time."""
    if dtype not in TYPES:
        return f"it has no {str(dtype).removeprefix('torch.')}"
    if states not in STATES:
        return f"it has 8, 16 or 32 states per channel, not {states}"
    return _gpu_refuses(dtype, next(n for n in STATES if n == states))  # a compiler may have a symbol for this number


@torch.compiler.assume_constant_result
def _gpu_refuses(dtype: torch.dtype, states: int) -> str:
    if not torch.cuda.is_available():
        return ""  # whoever asks here plans for a GPU elsewhere
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU"
    if (capability := torch.cuda.get_device_capability()) < OLDEST:
        return f"it needs compute capability 8.0, and this GPU has {capability[0]}.{capability[1]}"
    needed = max(shared_bytes(dtype, states))
    room = getattr(torch.cuda.get_device_properties(), "shared_memory_per_block_optin", needed)  # torch's types lack it
    if needed > room:
        return f"a block needs {needed} bytes of shared memory, and this GPU has {room}"
    return _compiler_refuses(dtype, states, capability)


@cache
def _compiler_refuses(dtype: torch.dtype, states: int, capability: tuple[int, int]) -> str:
    try:
        nvrtc.binary_of(source(dtype, states), capability)
    except (OSError, RuntimeError, AttributeError) as error:
        return f"it cannot be compiled: {error}".split("\n")[0]
    return ""
