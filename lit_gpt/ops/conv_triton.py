"""The short convolution by the Triton kernels of kernels/conv.py, as torch operations.

Both passes read each input once and write each result once, and forward keeps nothing: what silu was of, backward
computes again. What weights and bias get is added up by each program, and then over programs, in a fixed order; these
sums are all that backward makes beside gradients, 2% of x in bf16 with the longest segments.

Outputs come in pieces, tensors of their own, since a part of a joint output would have strides that other kernels copy;
and backward writes one gradient of x, where split would join several. So a kernel runs once for each piece.

Shapes: as in conv.py; S segments of L tokens and W channels of a program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import refuse_transforms
from lit_gpt.ops.segments import processors
from lit_gpt.ops.triton_calls import TYPES, gpu_refuses, launch

KERNELS = "lit_gpt.ops.kernels.conv"  # by name, since it imports Triton
TAPS = (2, 8)  # at least and at most
FEW_TAPS = 4  # with more, a thread has fewer channels, whose numbers would not fit into its registers
LENGTHS = (64, 32, 16)  # of segments, in tokens: K-1 tokens at either end are read twice
SEGMENTS, CHANNELS = 8, 128  # of a program: what it reads at once are 256 bytes of bf16 side by side
AT_ONCE = 4  # tokens that are read while those before them are computed with
PROGRAMS_PER_PROCESSOR = 4  # at least, where rows can be cut so; by their registers two fit at once
ALIGNED = 8  # channels, 16 bytes of bf16, that are read at once where pieces and strides are multiples of it


def convolved(
    x_BTC: Tensor,
    widths: Sequence[int],
    weight_CK: Tensor,
    bias_C: Tensor | None,
    silu: bool,
    doc_ids: Tensor | None,
    state_BCK: Tensor | None,
) -> list[Tensor]:
    """See conv.causal_conv_pieces."""
    weight, bias = weight_CK.float(), None if bias_C is None else bias_C.float()
    state = None if state_BCK is None else state_BCK.to(x_BTC.dtype).transpose(1, 2)
    refuse_transforms("The Triton kernels of the short convolution", x_BTC, weight, bias, state)
    return conv_forward(x_BTC, weight, bias, doc_ids, state, list(widths), silu)


class Cut(NamedTuple):
    """Tokens of a segment, segments of a row, and programs for all of them."""

    length: int
    per: int
    programs: int


def cut(rows: int, tokens: int, channels: int, room: int) -> Cut:
    """The longest segments with which there are `room` programs, or the shortest."""
    cuts = (Cut(n, per := -(-tokens // n), -(-rows * per // SEGMENTS)) for n in LENGTHS)
    *found, last = cuts
    return next((c for c in found if c.programs * -(-channels // CHANNELS) >= room), last)


class Convolution:
    """One call: its inputs as the kernels read them, and how these are launched."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, state: Tensor | None, silu: bool
    ) -> None:
        self.x, self.weight, self.bias, self.silu = side_by_side(x), weight.contiguous(), bias, silu
        self.ids, self.state = (None if t is None else t.contiguous() for t in (ids, state))
        (self.rows, self.tokens, self.channels), self.taps = x.shape, weight.shape[1]

    def cut(self, channels: int) -> Cut:
        return cut(self.rows, self.tokens, channels, PROGRAMS_PER_PROCESSOR * processors(self.x.device))

    def run(self, kernel: str, cut: Cut, part: slice, *own: Tensor | None, dy: Tensor | None = None) -> None:
        """A kernel on a part of the channels. own: its tensors beside the inputs."""
        channels = part.stop - part.start
        widths = *self.x.stride()[:2], *(() if dy is None else dy.stride()[:2]), channels, self.channels
        unit = ALIGNED if math.gcd(ALIGNED, part.start, *widths) == ALIGNED else 1
        *strides, of_part, of_all = (n // unit for n in widths)
        bias, state = (None if t is None else t[..., part] for t in (self.bias, self.state))
        given = self.x[..., part], self.weight[part], bias, self.ids, state, *own
        lengths = self.rows, self.tokens, of_part, of_all, cut.per
        constants = {"SILU": self.silu, "UNIT": unit, "K": self.taps, "S": SEGMENTS, "W": CHANNELS, "L": cut.length}
        warps = 4 if self.taps <= FEW_TAPS else 8
        grid = -(-channels // CHANNELS), cut.programs
        launch(KERNELS, kernel, grid, *given, *strides, *lengths, **constants, U=AT_ONCE, num_warps=warps)


def side_by_side(x_BTC: Tensor) -> Tensor:
    """Itself, where channels are."""
    return x_BTC if x_BTC.stride(2) == 1 else x_BTC.contiguous()


def parts(widths: Sequence[int]) -> Iterator[slice]:
    """Which channels each piece has."""
    end = 0
    for width in widths:
        end += width
        yield slice(end - width, end)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    state: Tensor | None,
    widths: list[int],
    silu: bool,
) -> list[Tensor]:
    """y of each piece, (B, T, width). state: (B, K-1, C)."""
    call, pieces = Convolution(x, weight, bias, ids, state, silu), []
    for part in parts(widths):
        y = x.new_empty(*x.shape[:2], part.stop - part.start)
        call.run("forward", call.cut(y.shape[2]), part, y)
        pieces.append(y)
    return pieces


def backward(
    dys: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and state, of those of the pieces."""
    call, dx = Convolution(x, weight, bias, ids, state, silu), x.new_empty(x.shape)
    dstate = None if state is None else x.new_empty(state.shape)
    dweight, dbias = weight.new_empty(weight.shape), weight.new_empty(len(weight))
    for part, dy in zip(parts([dy.shape[2] for dy in dys]), map(side_by_side, dys)):
        cut = call.cut(dy.shape[2])
        sums = weight.new_empty(cut.programs, call.taps + 1, dy.shape[2])
        own = dy, dx[..., part], None if dstate is None else dstate[..., part], sums
        call.run("backward", cut, part, *own, dy=dy)
        total = sums.sum(0)
        dweight[part], dbias[part] = total[:-1].t(), total[-1]
    return dx, dweight, dbias, x.new_empty(0) if dstate is None else dstate


conv_forward = torch.library.custom_op("lit_gpt::short_convolution", forward, mutates_args=())
conv_backward = torch.library.custom_op("lit_gpt::short_convolution_backward", backward, mutates_args=())


@conv_forward.register_fake
def _(x, weight, bias, ids, state, widths, silu):
    return [x.new_empty(*x.shape[:2], width) for width in widths]


@conv_backward.register_fake
def _(dys, x, weight, bias, ids, state, silu):
    dstate = x.new_empty(0) if state is None else x.new_empty(state.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]), dstate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.widths, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, dys: list[Tensor]) -> tuple[Tensor | None, ...]:
    x, weight, bias, ids, state = ctx.saved_tensors
    dx, dweight, dbias, dstate = conv_backward(dys, x, weight, bias, ids, state, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None, None if state is None else dstate, None, None


conv_forward.register_autograd(_autograd, setup_context=_setup)


def refuses(dtype: torch.dtype, taps: int, along_time: bool) -> str:
    """Why a GPU cannot run it, or ""."""
    if dtype not in TYPES:
        return f"it has no {str(dtype).removeprefix('torch.')}"
    if not TAPS[0] <= taps <= TAPS[1]:
        return f"its kernels are {TAPS[0]} to {TAPS[1]} wide, not {taps}"
    if along_time:
        return "it reads tokens whose channels lie side by side, not channels along time"
    return gpu_refuses(KERNELS)
