"""Mamba-2's scan by the Triton kernels of kernels/ssd.py, as torch operations, which a compiled block may contain.

Forward, a program goes through the chunks of one head of a row with the state in registers, and writes only the output.
Backward, two passes like it write the states before all chunks and their gradients after them, of one layer at a time.
From these all chunks follow at once: a kernel for what x and the steps get, and one for what B and C get, which adds up
over the heads that share them in registers. No two programs write the same number, so bits repeat. Few rows that are
long would leave a GPU idle: they are cut into segments, as in selective_scan_cuda.py.

Shapes: as in ssd.py; M chunks of L tokens; S segments of a row; R of a tensor's rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.backends import Memory, refuse_transforms
from lit_gpt.ops.segments import count, processors, true_states
from lit_gpt.ops.triton_calls import HEADS, TYPES, Launch, gpu_refuses, launch, readable, strides

KERNELS = "lit_gpt.ops.kernels.ssd"  # by name, since it imports Triton
WIDTHS, STATES = (16, 32, 64, 128), (16, 32, 64, 128, 256)  # powers of two, and a product's smallest size is 16

PROGRAMS_PER_PROCESSOR = 2  # of the passes along a row, that fit at once by their registers and shared memory
SHORTEST = 8  # chunks of a segment
BLOCKS = 512  # programs that fill a GPU; where chunks are less, heads with the same B and C are split into blocks


class Sizes(NamedTuple):
    """How one shape is cut: tokens of a chunk, channels of a program; and for each kernel how it is launched."""

    chunk: int
    width: int
    forward: Launch
    states: Launch
    inputs: Launch
    gradients: Launch


def sizes(dtype: torch.dtype, width: int, states: int) -> Sizes:
    """Chosen by what ptxas says for 64 channels and 128 states: registers suffice (but for four in forward), and there
    and in shared memory 2, 2, 3 and 1 programs fit on a processor at once.
    """
    if dtype == torch.float32:  # no tensor cores, and tiles of twice the bytes
        return Sizes(32, min(width, 32), Launch(8, 1), Launch(8, 1), Launch(8, 1), Launch(8, 1))
    if states > 128:
        return Sizes(64, min(width, 32), Launch(8, 2), Launch(4, 3), Launch(4, 1), Launch(8, 2))
    return Sizes(64, min(width, 64), Launch(4, 2), Launch(4, 3), Launch(4, 1, 168), Launch(8, 3))


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    starts_BT: Tensor | None,
    state_BHPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See ssd.ssd. starts: see triton_calls.first_tokens; None without documents."""
    B, C = (t.to(x_BTHP.dtype) for t in (B_BTGN, C_BTGN))
    A, D, bias = (t.float() for t in (A_H, D_H, dt_bias_H))
    state = None if state_BHPN is None else state_BHPN.float()
    inputs = x_BTHP, dt_BTH, A, B, C, D, bias
    refuse_transforms("The Triton kernels of Mamba-2's scan", *inputs, state)
    return scan_forward(*inputs, starts_BT, state, _segments(x_BTHP, B_BTGN.shape[3]))


def memory(x_BTHP: Tensor, states: int) -> Memory:
    """Nothing is kept. Made: two states for each chunk and head, in x's dtype; d, a, and what these get by each part of
    a head's channels, in fp32. Where chunks are few, blocks of heads add to that what B and C get (see _of_groups).
    """
    heads, width = x_BTHP.shape[2:]
    cut = sizes(x_BTHP.dtype, width, states)
    of_states = 2 * x_BTHP.element_size() * heads * width * states / cut.chunk
    return Memory(0, of_states + 4 * heads * (2 + 3 * (width // cut.width)))


def _segments(x_BTHP: Tensor, states: int) -> int:
    """Into how many each row is cut."""
    batch, length, heads, width = x_BTHP.shape
    cut = sizes(x_BTHP.dtype, width, states)
    programs, chunks = batch * heads * (width // cut.width), -(-length // cut.chunk)
    room = processors(x_BTHP.device) * PROGRAMS_PER_PROCESSOR
    return count(programs, room, lambda n: chunks >= n * SHORTEST)


class Scan:
    """One call: its steps, how it is cut, and the passes along a row."""

    def __init__(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, bias: Tensor, starts: Tensor | None, segments: int
    ) -> None:
        (self.batch, self.tokens, self.heads, self.width), (self.groups, self.states) = x.shape, B.shape[2:]
        self.cut = sizes(x.dtype, self.width, self.states)
        self.parts = self.width // self.cut.width
        self.chunks = -(-self.tokens // self.cut.chunk)
        self.per = -(-self.chunks // segments)
        self.segments = -(-self.chunks // self.per)
        self.starts = None if starts is None else starts.contiguous()
        self.raw = dt if dt.stride(2) == 1 else dt.contiguous(), bias.contiguous(), A.contiguous()
        self.d, self.a = (self.of_steps() for _ in range(2))
        self.run_steps("steps", *self.raw, self.d, self.a, *self.raw[0].stride()[:2], *self.lengths)

    @property
    def lengths(self) -> tuple[int, int, int]:
        return self.tokens, self.heads, self.chunks

    def of_steps(self, *parts: int) -> Tensor:
        """Room for a number for each head and token of whole chunks."""
        padded = self.chunks * self.cut.chunk
        return torch.empty(*parts, self.batch, self.heads, padded, device=self.raw[0].device)

    def run_steps(self, kernel: str, *arguments: Any) -> None:
        """A kernel on the steps, which has a program for each chunk and HEADS heads."""
        grid = self.batch * self.chunks, -(-self.heads // HEADS)
        launch(KERNELS, kernel, grid, *arguments, L=self.cut.chunk, HEADS=HEADS, num_warps=4)

    def run(self, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        """One of the other kernels."""
        how: Launch = getattr(self.cut, kernel)
        constants |= {"L": self.cut.chunk, "P": self.width, "WIDTH": self.cut.width, "N": self.states}
        launch(KERNELS, kernel, grid, *arguments, **constants, **how._asdict())

    def run_along(self, kernel: str, *arguments: Any, **constants: int) -> None:
        """A kernel that goes along the rows."""
        grid = self.heads, self.batch * self.segments, self.parts
        lengths = self.tokens, self.heads, self.heads // self.groups, self.chunks, self.per, self.segments
        self.run(kernel, grid, *arguments, *lengths, **constants)

    def ends(self) -> Tensor:
        """Room for a state at an end of each segment."""
        return self.d.new_empty(self.batch, self.segments, self.heads, self.width, self.states)

    def along(self, x: Tensor, B: Tensor, start: Tensor | None, kept: Tensor | None, backward: bool) -> Tensor:
        """One pass that keeps the states on its way, and returns the last ones, of each segment from its start."""
        last = self.ends()
        given = x, B, self.d, self.a, self.starts, start, kept, last, *strides(x), *strides(B)
        self.run_along("states", *given, BACKWARD=backward)
        return last

    def at_segments(self, x: Tensor, B: Tensor, state: Tensor | None, backward: bool = False) -> Tensor | None:
        """The state at the start of each segment, or backward its gradient at the end, from the given first one."""
        if self.segments == 1:
            return None if state is None else state.contiguous()
        ends = self.along(x, B, None, None, backward)
        return true_states(ends, self._through()[..., None, None], state, backward)

    def _through(self) -> Tensor:
        """The decay through each segment, (B, S, H)."""
        of_chunks = self.a[..., self.cut.chunk - 1 :: self.cut.chunk]
        padded = F.pad(of_chunks, (0, self.segments * self.per - self.chunks))
        decay = padded.unflatten(2, (self.segments, -1)).sum(3).exp().transpose(1, 2)
        if self.starts is None:
            return decay
        ends = torch.arange(1, self.segments + 1, device=decay.device) * (self.per * self.cut.chunk)
        last = self.starts[:, ends.clamp(max=self.tokens) - 1]
        return decay * (last < ends - self.per * self.cut.chunk)[..., None]


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
    segments: int,
) -> tuple[Tensor, Tensor]:
    """y (B, T, H, P) and the last state (B, H, P, N)."""
    x, B, C = (readable(t) for t in (x, B, C))
    scan, y = Scan(x, dt, A, B, bias, starts, segments), x.new_empty(x.shape)
    start, last = scan.at_segments(x, B, state), scan.ends()
    given = x, B, C, D.contiguous(), scan.d, scan.a, scan.starts, start, y, last
    scan.run_along("forward", *given, *strides(x), *strides(B), *strides(C))
    return y, last[:, -1].contiguous()


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
    state: Tensor | None,
    segments: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, A, B, C, D, bias and the first state, of those of y and the last state."""
    dy, x, B, C = (readable(t) for t in (dy, x, B, C))
    scan = Scan(x, dt, A, B, bias, starts, segments)
    before, after = (x.new_empty(scan.batch, scan.heads, scan.chunks, scan.width, scan.states) for _ in range(2))
    scan.along(x, B, scan.at_segments(x, B, state), before, backward=False)
    dstate = scan.along(dy, C, scan.at_segments(dy, C, dlast, backward=True), after, backward=True)
    dd, da = scan.of_steps(scan.parts), scan.of_steps(2, scan.parts)
    dx, dD = _of_inputs(scan, x, dy, B, C, D, after, dd, da[0])
    dB, dC = _of_groups(scan, x, dy, B, C, before, after, da[1])
    ddt, of_chunks = dt.new_empty(dt.shape), (scan.batch * scan.chunks, scan.heads)
    dA, dbias = (A.new_empty(of_chunks) for _ in range(2))
    given = *scan.raw, scan.d, dd, da, ddt, dA, dbias, *scan.raw[0].stride()[:2], *scan.lengths, scan.parts
    scan.run_steps("steps_backward", *given)
    return dx, ddt, dA.sum(0), dB, dC, dD, dbias.sum(0), dstate[:, 0].contiguous()


def _of_inputs(
    scan: Scan, x: Tensor, dy: Tensor, B: Tensor, C: Tensor, D: Tensor, after: Tensor, dd: Tensor, da: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and D; dd and da are written."""
    dx, dD = x.new_empty(x.shape), D.new_empty(scan.parts * scan.batch * scan.chunks, scan.heads)
    given = x, dy, B, C, D.contiguous(), scan.d, scan.a, scan.starts, after, dx, dd, da, dD
    of_all = *strides(x), *strides(dy), *strides(B), *strides(C)
    grid = scan.batch * scan.chunks * scan.heads, scan.parts
    scan.run("inputs", grid, *given, *of_all, scan.tokens, scan.heads, scan.heads // scan.groups, scan.chunks)
    return dx, dD.sum(0)


def _of_groups(
    scan: Scan, x: Tensor, dy: Tensor, B: Tensor, C: Tensor, before: Tensor, after: Tensor, da: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of B and C; da is written."""
    share = scan.heads // scan.groups
    block = _block(share, scan.batch * scan.chunks * scan.groups)
    blocks = share // block
    dB, dC = (B.new_empty(blocks, *B.shape, dtype=B.dtype if blocks == 1 else torch.float32) for _ in range(2))
    given = x, dy, B, C, scan.d, scan.a, scan.starts, before, after, dB, dC, da
    of_all = *strides(x), *strides(dy), *strides(B), *strides(C)
    lengths = scan.batch, scan.tokens, scan.heads, share, scan.chunks, block
    scan.run("gradients", (scan.batch * scan.chunks, scan.groups * blocks), *given, *of_all, *lengths)
    return (dB[0], dC[0]) if blocks == 1 else (dB.sum(0).to(B.dtype), dC.sum(0).to(B.dtype))


def _block(share: int, programs: int) -> int:
    """Heads of a program, of `share` heads with the same B and C: all, or where that makes few programs, a divisor."""
    blocks = next((n for n in range(1, share) if share % n == 0 and n * programs >= BLOCKS), share)
    return share // blocks


scan_forward = torch.library.custom_op("lit_gpt::ssd", forward, mutates_args=())
scan_backward = torch.library.custom_op("lit_gpt::ssd_backward", backward, mutates_args=())


@scan_forward.register_fake
def _(x, dt, A, B, C, D, bias, starts, state, segments):
    return x.new_empty(x.shape), A.new_empty(x.shape[0], *x.shape[2:], B.shape[3])


@scan_backward.register_fake
def _(dy, dlast, x, dt, A, B, C, D, bias, starts, state, segments):
    given = x, dt, A, B, C, D, bias
    return (*(t.new_empty(t.shape) for t in given), A.new_empty(x.shape[0], *x.shape[2:], B.shape[3]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.segments = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, starts, state = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    *found, dstate = scan_backward(dy, dlast, *tensors, starts, state, ctx.segments)
    return (*found, None, dstate if state is not None else None, None)


scan_forward.register_autograd(_autograd, setup_context=_setup)


def refuses(dtype: torch.dtype, width: int, states: int) -> str:
    """Why a GPU cannot run it, or ""."""
    if dtype not in TYPES:
        return f"it has no {str(dtype).removeprefix('torch.')}"
    if width not in WIDTHS or states not in STATES:
        return f"its heads have 16 to 128 channels and 16 to 256 states, powers of two, not {width} and {states}"
    return gpu_refuses(KERNELS)
