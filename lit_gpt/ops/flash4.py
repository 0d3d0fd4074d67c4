"""FlashAttention 4, of the package flash-attn-4, as torch operations, which a compiled block may contain.

The package's own functions are Python that no compiler can trace. What they call for each pass is called here, and
writes into memory of these operations, so a compiler knows the results without running anything. Kernels read queries,
keys and values in strides where the numbers of a head lie side by side and all else are multiples of 16 bytes, as in
views of a joint projection; the package copies what is not so.

Shapes: B rows, T queries, K keys, H query heads, G key-value heads, D and V numbers of a head, N documents.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from lit_gpt.ops.backends import missing, optional, refuse_transforms

MODULE, PACKAGE = "flash_attn.cute", "flash-attn-4"
TESTED = "4.0.0b36"  # its kernels on an H200; 4.0.0b5, b13, b20, b28 and b34 have these arguments, too
COMMON = ("softmax_scale", "causal", "window_size_left", "window_size_right")
COMMON += ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
PASSES = {
    "_flash_attn_fwd": (*COMMON, "out", "lse"),
    "_flash_attn_bwd": (*COMMON, "deterministic", "dq", "dk", "dv"),
}
# Numbers of a head with which whole steps on an H200 were faster than with torch's own (docs/performance_details.md).
# Heads of 64, 96, 192 and 256 give right results there (tests/ops/test_flash4.py), and nobody has timed them.
FASTER_HEADS = (128,)
LARGEST, LARGEST_BLACKWELL = 256, 128  # the latter but for one kernel, of 256

# It warns of an argument that it passes to itself, in 700 characters, when it makes a kernel; a user can do nothing.
warnings.filterwarnings("ignore", message="Argument aux_data .* cannot be converted to a JitArgument")


def attend(
    q_BTHD: Tensor, k_BKGD: Tensor, v_BKGV: Tensor, offsets: Tensor | None, window: int | None, scale: float
) -> Tensor:
    """The weighted sums of the values, (B, T, H, V); see attention. offsets: cu_seqlens, None without documents."""
    plain = "backend='plain' for attention, GPT(config, attention_backend='plain') for a model"
    refuse_transforms("The kernels of FlashAttention 4", q_BTHD, k_BKGD, v_BKGV, plain=plain)
    # Backward adds up the gradients of queries in any order unless asked not to.
    in_order = torch.are_deterministic_algorithms_enabled()
    return attention_forward(q_BTHD, k_BKGD, v_BKGV, offsets, window, scale, in_order)[0]


def refuses(dim: int | None, major: int) -> str:
    """Why it does not do heads of `dim` numbers (None: nobody knows) on this compute capability, or ""."""
    if lacking := lacks():
        return lacking
    largest = LARGEST_BLACKWELL if major in (10, 11) else LARGEST
    return "" if dim is None or dim <= largest or dim == LARGEST else f"it has no heads of {dim} dimensions"


def is_faster(dim: int | None) -> bool:
    """Whether `auto` may take it for heads of `dim` numbers: where this version was tested, and faster."""
    return dim in FASTER_HEADS and _installed() == TESTED and torch.cuda.get_device_capability()[0] == 9


@torch.compiler.assume_constant_result
def _installed() -> str:
    """Its version, "" without it."""
    return "" if missing(MODULE) else _version()


@functools.cache
def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # built from its sources, under another name
        return ""


@torch.compiler.assume_constant_result
def lacks() -> str:
    """What the installed version has not, of what is called here, or ""."""
    for name, wanted in PASSES.items():
        function = getattr(_interface(), name, None)
        known = () if function is None else inspect.signature(function).parameters
        if gone := [argument for argument in wanted if argument not in known]:
            return f"its {name} has no {gone[0]}, as that of {PACKAGE}=={TESTED} has, which you may install instead"
    return ""


def _interface() -> Any:
    return getattr(optional(MODULE), "interface", None)


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, window: int | None, scale: float, in_order: bool
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each softmax's divisor in fp32: (B, H, T), or (H, B * T) with documents."""
    out, lse = _results(q, v, offsets)
    *given, into = _laid((q, k, v, out), offsets)
    _interface()._flash_attn_fwd(*given, out=into, lse=lse, **_options(q, k, offsets, window, scale))
    return out, lse


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    window: int | None,
    scale: float,
    in_order: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    found = _gradients(q, k, v)
    dq, dk, dv = _laid(found, offsets)
    options = _options(q, k, offsets, window, scale) | {"deterministic": in_order, "dq": dq, "dk": dk, "dv": dv}
    _interface()._flash_attn_bwd(*_laid((q, k, v, out, dy), offsets), lse, **options)
    return found


def _results(q: Tensor, v: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Memory for what forward gives."""
    batch, tokens, heads, _ = q.shape
    shape = (batch, heads, tokens) if offsets is None else (heads, batch * tokens)
    return q.new_empty(batch, tokens, heads, v.shape[3]), q.new_empty(shape, dtype=torch.float32)


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what backward gives."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _laid(tensors: tuple[Tensor, ...], offsets: Tensor | None) -> tuple[Tensor, ...]:
    """With documents, rows end to end."""
    return tensors if offsets is None else tuple(t.flatten(0, 1) for t in tensors)


def _options(q: Tensor, k: Tensor, offsets: Tensor | None, window: int | None, scale: float) -> dict[str, Any]:
    """What both passes are told. Tokens to the left and right of a query do not count itself; None is no limit."""
    left, right = (None, None) if window is None else (window - 1, 0)
    options = {"softmax_scale": scale, "causal": True, "window_size_left": left, "window_size_right": right}
    if offsets is None:
        return options
    # The longest document is not known without waiting for the device; a row is no shorter.
    options |= {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    return options | {"max_seqlen_q": q.shape[1], "max_seqlen_k": k.shape[1]}


attention_forward = torch.library.custom_op("lit_gpt::flash_attention_4", forward, mutates_args=())
attention_backward = torch.library.custom_op("lit_gpt::flash_attention_4_backward", backward, mutates_args=())


@attention_forward.register_fake
def _(q, k, v, offsets, window, scale, in_order):
    return _results(q, v, offsets)


@attention_backward.register_fake
def _(dy, q, k, v, out, lse, offsets, window, scale, in_order):
    return _gradients(q, k, v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *attention_backward(dy, *ctx.saved_tensors, *ctx.options), None, None, None, None


attention_forward.register_autograd(_autograd, setup_context=_setup)
