"""The short convolution by the Triton kernels of kernels/conv.py, as torch operations.

Both passes read each input once and write each result once, and forward keeps nothing: what silu was of, backward
computes again. What weights and bias get is added up by each program, and then over programs, in a fixed order; these
sums are all that backward makes beside gradients, 2% of x in bf16 with the longest segments.

Outputs come in pieces, tensors of their own, since a part of a joint output would have strides that other kernels copy;
and backward writes one gradient of x, where split would join several. A kernel runs once for all of them.

Shapes: as in conv.py; S segments of L tokens and W channels of a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import refuse_transforms
from lit_gpt.ops.segments import processors
from lit_gpt.ops.triton_calls import TYPES, gpu_refuses, launch

KERNELS = "lit_gpt.ops.kernels.conv"  # by name, since it imports Triton
TAPS = (2, 8)  # at least and at most
FEW_TAPS = 4  # with more, a thread has four channels and not eight, whose numbers would not fit into its registers
LENGTHS = (64, 32, 16)  # of segments, in tokens: K-1 tokens at either end are read twice
SEGMENTS, CHANNELS = 8, 128  # of a program: what it reads at once are 256 bytes of bf16 side by side
PROGRAMS_PER_PROCESSOR = 4  # at least, where rows can be cut so; by their registers two fit at once
FARTHEST = 2**31 // (LENGTHS[0] + 2 * TAPS[1])  # numbers from a token to the next
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


class Launch(NamedTuple):
    """Tokens that are read while those before them are computed with, and warps."""

    at_once: int
    warps: int


def how(dtype: torch.dtype, taps: int, aligned: bool) -> Launch:
    """Chosen by what ptxas says (Triton 3.6, sm_90), and not yet by the time on a GPU.

    With four taps in bf16 a thread has 136 registers forward and 245 backward, so that 3 and 2 programs fit on a
    processor at once; they have 24 and 32 KB on their way to it. No kernel has too few registers, but backward with
    documents: by 13 numbers with four taps in bf16, by up to 9 with eight in fp32, by up to 26 with eight where widths
    or strides are no multiples of 8.
    """
    return Launch(4 if aligned and dtype.itemsize == 2 else 2, 4 if aligned and taps <= FEW_TAPS else 8)


class Cut(NamedTuple):
    """Tokens of a segment, segments of a row, and programs for all of them."""

    length: int
    per: int
    programs: int


def cut(rows: int, tokens: int, blocks: int, room: int) -> Cut:
    """The longest segments with which there are `room` programs, or the shortest. blocks: of channels."""
    cuts = (Cut(n, per := -(-tokens // n), -(-rows * per // SEGMENTS)) for n in LENGTHS)
    *found, last = cuts
    return next((c for c in found if c.programs * blocks >= room), last)


class Convolution:
    """One call: its inputs as the kernels read them, and how these are launched."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor | None,
        state: Tensor | None,
        widths: Sequence[int],
        silu: bool,
    ) -> None:
        self.x, self.weight, self.bias, self.silu = side_by_side(x), weight.contiguous(), bias, silu
        self.ids, self.state = (None if t is None else t.contiguous() for t in (ids, state))
        (self.rows, self.tokens, self.channels), self.taps = x.shape, weight.shape[1]
        self.widths, self.blocks = widths, sum(-(-width // CHANNELS) for width in widths)
        self.cut = cut(self.rows, self.tokens, self.blocks, PROGRAMS_PER_PROCESSOR * processors(x.device))

    def run(self, kernel: str, *own: Any, dys: Sequence[Tensor] = ()) -> None:
        """A kernel. own: its tensors beside the inputs."""
        of_dys = [tuple(dy.stride(dim) for dy in dys) for dim in (0, 1)] if dys else []
        of_x = self.x.stride()[:2]
        counts = self.channels, *self.widths, *of_x, *(n for of_dim in of_dys for n in of_dim)
        aligned = not any(n % ALIGNED for n in counts) and not any(t.data_ptr() % 16 for t in (self.x, *dys))
        unit = ALIGNED if aligned else 1
        widths, of_x, *of_dys = (tuple(n // unit for n in ns) for ns in (self.widths, of_x, *of_dys))
        inputs = self.x, self.weight, self.bias, self.ids, self.state
        lengths = self.rows, self.tokens, self.channels // unit, self.cut.per
        constants = {"SILU": self.silu, "UNIT": unit, "K": self.taps, "S": SEGMENTS, "W": CHANNELS}
        at_once, warps = how(self.x.dtype, self.taps, aligned)
        constants |= {"L": self.cut.length, "U": at_once, "num_warps": warps}
        given = *inputs, *own, widths, *of_x, *of_dys, *lengths
        launch(KERNELS, kernel, (self.blocks, self.cut.programs), *given, **constants)


def side_by_side(x_BTC: Tensor) -> Tensor:
    """Itself, where channels are, and where 32 bits reach from a segment's first token to its last."""
    return x_BTC if x_BTC.stride(2) == 1 and x_BTC.stride(1) < FARTHEST else x_BTC.contiguous()


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
    ys = [x.new_empty(*x.shape[:2], width) for width in widths]
    Convolution(x, weight, bias, ids, state, widths, silu).run("forward", tuple(ys))
    return ys


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
    dys = tuple(map(side_by_side, dys))
    call = Convolution(x, weight, bias, ids, state, [dy.shape[2] for dy in dys], silu)
    # Zeros, since without tokens no program writes them.
    dx, dstate = x.new_empty(x.shape), None if state is None else x.new_zeros(state.shape)
    sums = weight.new_empty(call.cut.programs, 1 + call.taps, call.channels)
    call.run("backward", dys, dx, dstate, sums, dys=dys)
    total = sums.sum(0)
    dweight = total[1:].t().clone(memory_format=torch.contiguous_format)  # of one channel, too, apart from the bias's
    return dx, dweight, total[0], x.new_empty(0) if dstate is None else dstate


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
