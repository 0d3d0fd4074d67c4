"""Depthwise causal convolution over time: two entry points, kernels, plain torch.

    y_BTC, state_BCK = causal_conv(x_BTC, weight_C1K, bias_C, activation="silu", doc_ids=..., state_BCK=...)

    y_t = activation(bias + sum over lag = 0..K-1 of weight_(K-1-lag) x_(t-lag))

Inputs before the row and of other documents count as zero.
Shapes: B batch, T tokens, C channels, K kernel width; a state has K-1 in place of K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import conv_triton
from lit_gpt.ops.backends import Backend, explain_table, missing, optional, run
from lit_gpt.ops.dtypes import upcast

Activation = Literal["silu"] | None

OPERATION = "causal convolution"
PIECES = "causal_conv1d.cpp_functions"  # its two passes as functions, which take the tensor of a gradient to write
ALIGNED = 8  # causal_conv1d loads this many channels at once (16 bytes of bf16)


class Request(NamedTuple):
    """What a backend is chosen by. along_time: whether a channel's tokens lie side by side, not a token's channels."""

    device: str
    dtype: torch.dtype
    channels: int
    width: int
    documents: bool
    along_time: bool = False


class Inputs(NamedTuple):
    """One call, weight and bias in at least fp32."""

    x_BTC: Tensor
    weight_CK: Tensor
    bias_C: Tensor | None
    activation: Activation
    doc_ids: Tensor | None
    state_BCK: Tensor | None


def causal_conv(
    x_BTC: Tensor,
    weight_C1K: Tensor,
    bias_C: Tensor | None = None,
    *,
    activation: Activation = None,
    doc_ids: Tensor | None = None,
    state_BCK: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The convolved x (B, T, C) in x's dtype, and the state that the next tokens need.

    K >= 2. Weights and sums are in at least fp32. doc_ids: (B, T) integers >= 0, equal within
    a document. state_BCK: what an earlier call returned, None for zeros: the last K-1 inputs
    (B, C, K-1), which belong to the document of each row's first token. The new state has
    zeros where an input is not of the row's last document.
    Raises UserError for a backend that is unknown or does not do this.
    """
    widths = [weight_C1K.shape[0]]
    given = {"activation": activation, "doc_ids": doc_ids, "state_BCK": state_BCK, "backend": backend}
    (y_BTC,), state = causal_conv_pieces(x_BTC, widths, weight_C1K, bias_C, **given)
    return y_BTC, state


def causal_conv_pieces(
    x_BTC: Tensor,
    widths: Sequence[int],
    weight_C1K: Tensor,
    bias_C: Tensor | None = None,
    *,
    activation: Activation = None,
    doc_ids: Tensor | None = None,
    state_BCK: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Sequence[Tensor], Tensor]:
    """The same in pieces (B, T, width) that lie side by side in x, without copies where a kernel does them."""
    channels, _, width = weight_C1K.shape
    along_time = x_BTC.stride(1) == 1 and x_BTC.stride(2) != 1
    request = Request(x_BTC.device.type, x_BTC.dtype, channels, width, doc_ids is not None, along_time)
    weight_CK, bias = upcast(weight_C1K.squeeze(1)), None if bias_C is None else upcast(bias_C)
    inputs = Inputs(x_BTC, weight_CK, bias, activation, doc_ids, state_BCK)
    pieces = run(OPERATION, BACKENDS, request, backend, inputs, list(widths))
    return pieces, _last_inputs(x_BTC, width, doc_ids, state_BCK)


def reads_along_time(
    x_BTX: Tensor, channels: int, width: int, doc_ids: Tensor | None, state: Tensor | None, backend: str = "auto"
) -> bool:
    """Whether the backend of a convolution of these tokens has no need to copy channels that lie along time.

    x: any tensor of the tokens, on their device and of their dtype.
    """
    if backend != "auto" or doc_ids is not None or state is not None:
        return backend == "causal_conv1d" and doc_ids is None and state is None
    request = Request(x_BTX.device.type, x_BTX.dtype, channels, width, documents=False, along_time=True)
    return not BACKENDS["causal_conv1d"].refuses(request)  # ours refuses it; who only asks is not warned of plain torch


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 64, 4, False))


def _before(x_BTC: Tensor, count: int, doc_ids: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and its documents, with the `count` tokens before them in front: the state, or zeros.

    These belong to the document of each row's first token.
    """
    past = x_BTC.new_zeros(x_BTC.shape[0], count, x_BTC.shape[2]) if state is None else state.transpose(1, 2)
    ids = None if doc_ids is None else torch.cat([doc_ids[:, :1].expand(-1, count), doc_ids], dim=1)
    return torch.cat([past.to(x_BTC.dtype), x_BTC], dim=1), ids


def _last_inputs(x_BTC: Tensor, width: int, doc_ids: Tensor | None, state: Tensor | None) -> Tensor:
    count = width - 1
    tail_BKC, ids = x_BTC[:, -count:], None if doc_ids is None else doc_ids[:, -count:]
    if x_BTC.shape[1] < count:
        tail_BKC, ids = _before(tail_BKC, count, ids, state)
        tail_BKC, ids = tail_BKC[:, -count:], None if ids is None else ids[:, -count:]
    if ids is not None:
        tail_BKC = tail_BKC * (ids == ids[:, -1:])[..., None]
    return tail_BKC.transpose(1, 2).contiguous()  # a view would keep all of x alive in a cache


def _plain(inputs: Inputs, widths: list[int]) -> Sequence[Tensor]:
    """One shifted product per tap in fp32; does everything."""
    x, weight_CK, bias, activation, doc_ids, state = inputs
    length, width = x.shape[1], weight_CK.shape[1]
    padded, ids = _before(x, width - 1, doc_ids, state)  # not in fp32, since a compiler keeps all of it for backward
    y_BTC = upcast(padded[:, width - 1 :]) * weight_CK[:, -1]
    for k in range(width - 1):
        earlier = upcast(padded[:, k : k + length])
        if ids is not None and doc_ids is not None:
            earlier = earlier * (ids[:, k : k + length] == doc_ids)[..., None]
        y_BTC = torch.addcmul(y_BTC, earlier, weight_CK[:, k])
    y_BTC = y_BTC if bias is None else y_BTC + bias
    return _pieces((y_BTC if activation is None else F.silu(y_BTC)).to(x.dtype), widths)


def _pieces(y_BTC: Tensor, widths: list[int]) -> Sequence[Tensor]:
    return [y_BTC] if len(widths) == 1 else y_BTC.split(widths, dim=-1)


def _triton(inputs: Inputs, widths: list[int]) -> Sequence[Tensor]:
    """This project's own Triton kernels (kernels/conv.py), compiled when first used; in a block's graph."""
    x, weight_CK, bias, activation, doc_ids, state = inputs
    return conv_triton.convolved(x, widths, weight_CK, bias, activation is not None, doc_ids, state)


def _triton_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    return conv_triton.refuses(request.dtype, request.width, request.along_time)


@torch.compiler.disable
def _causal_conv1d(inputs: Inputs, widths: list[int]) -> Sequence[Tensor]:
    """The causal_conv1d package's CUDA kernels: one has channels last, the other time, and knows no documents."""
    x, weight_CK, bias, activation, doc_ids, state = inputs
    if len(widths) > 1 and state is None and not missing(PIECES) and not any(w % ALIGNED for w in widths):
        return _causal_conv1d_pieces(inputs, widths)
    count = 0 if state is None else weight_CK.shape[1] - 1
    if state is not None:  # as more tokens, whose outputs are dropped: the kernel knows states or documents, not both
        x, doc_ids = _before(x, count, doc_ids, state)
    if not _readable(x, documents=doc_ids is not None):
        x = x.contiguous()
    ids = None if doc_ids is None else doc_ids.int().contiguous()
    convolve = optional("causal_conv1d").causal_conv1d_fn
    y_BTC = convolve(x.transpose(1, 2), weight_CK, bias, seq_idx=ids, activation=activation).transpose(1, 2)
    return _pieces(y_BTC[:, count:] if count else y_BTC, widths)  # a slice of everything would be copied in backward


def _readable(x_BTC: Tensor, documents: bool) -> bool:
    """Whether causal_conv1d has a kernel for this layout."""
    aligned = not any(s % ALIGNED for s in (*x_BTC.stride(), x_BTC.storage_offset()) if s != 1)
    if x_BTC.stride(2) == 1:
        return aligned
    # Along time it loads single numbers where rows are no whole words.
    return x_BTC.stride(1) == 1 and not documents and (aligned or x_BTC.shape[1] % ALIGNED != 0)


def _causal_conv1d_pieces(inputs: Inputs, widths: list[int]) -> tuple[Tensor, ...]:
    """causal_conv1d once for each piece, from channels last."""
    x, weight_CK, bias, activation, doc_ids, _ = inputs
    if not _readable(x, documents=True):
        x = x.contiguous()
    ids = None if doc_ids is None else doc_ids.int().contiguous()
    return _Pieces.apply(x, weight_CK, bias, ids, activation is not None, widths)


class _Pieces(torch.autograd.Function):
    """Outputs of their own, since splitting one would leave strides that other kernels copy; backward, the library
    writes the pieces of one gradient, where split would join them.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BTC: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool, widths: list[int]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_BTC, weight, bias, ids)
        ctx.silu, ctx.widths = silu, widths
        run = optional(PIECES).causal_conv1d_fwd_function
        given = _split(widths, x_BTC, weight, bias)
        return tuple(run(x, w, b, ids, None, None, silu).transpose(1, 2) for x, w, b in given)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x_BTC, weight, bias, ids = ctx.saved_tensors
        run, dx_BTC = optional(PIECES).causal_conv1d_bwd_function, torch.empty_like(x_BTC)
        given = zip(_split(ctx.widths, x_BTC, weight, bias), dys, dx_BTC.transpose(1, 2).split(ctx.widths, dim=1))
        results = [
            run(x, w, b, dy.contiguous().transpose(1, 2), ids, None, None, dx, False, ctx.silu)
            for (x, w, b), dy, dx in given
        ]
        dbias = None if bias is None else torch.cat([db for _, _, db, _ in results])
        return dx_BTC, torch.cat([dw for _, dw, _, _ in results]), dbias, None, None, None


def _split(
    widths: list[int], x_BTC: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Each piece's x (B, C, T), weight and bias."""
    biases = [None] * len(widths) if bias is None else bias.split(widths)
    return zip(x_BTC.transpose(1, 2).split(widths, dim=1), weight.split(widths), biases)


def _causal_conv1d_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype == torch.float64:
        return "it has no float64"
    if request.channels % ALIGNED:
        return f"it needs a multiple of {ALIGNED} channels, not {request.channels}"
    if not 2 <= request.width <= 4:
        return f"its kernels are 2 to 4 wide, not {request.width}"
    return missing("causal_conv1d")


@torch.compiler.disable
def _fla(inputs: Inputs, widths: list[int]) -> Sequence[Tensor]:
    """flash-linear-attention's Triton kernel, for rows of one document."""
    x, weight_CK, bias, activation, _, state = inputs
    length = x.shape[1]
    if state is not None:
        x, _ = _before(x, weight_CK.shape[1] - 1, None, state)
    convolve = optional("fla.modules.causal_conv1d").causal_conv1d
    y_BTC = convolve(x.contiguous(), weight_CK.contiguous(), bias, activation=activation)[0]
    return _pieces(y_BTC[:, -length:], widths)


def _fla_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype == torch.float64:
        return "it has no float64"
    if request.documents:
        return "it is used for rows of one document only"
    return missing("fla.modules.causal_conv1d")


BACKENDS: dict[str, Backend] = {
    "triton": Backend(_triton, _triton_refuses),
    "causal_conv1d": Backend(_causal_conv1d, _causal_conv1d_refuses),
    "fla": Backend(_fla, _fla_refuses),
    "plain": Backend(_plain, lambda r: ""),
}
