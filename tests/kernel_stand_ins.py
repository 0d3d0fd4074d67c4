"""Plain torch in the place of mamba_ssm's and causal_conv1d's kernels, with their demands on layout; what is copied.

What a wheel's Python or C++ does about a layout, the stand-in does too, from the sources of mamba_ssm 2.3.2 and
causal_conv1d 1.7.0: it copies what its kernel cannot read, refuses what it refuses, and gives results and gradients in
the layouts of `empty_like`. What it computes by is hidden from `Copies`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lit_gpt.ops import conv, selective_scan, ssd

aten = torch.ops.aten
COPYING = (aten.clone, aten.copy_, aten._to_copy, aten.cat, aten.slice_backward, aten.select_backward, aten.stack)


class Copies(TorchDispatchMode):
    """Counts what operations that only move or cast numbers of activations write: elements per token, by operation.

    Also, as "mixed", what operations write that read two tensors of one shape in different layouts: one of them is read
    in strides. tokens: a number that divides no weight's size.
    """

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens, self.written = tokens, Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() % self.tokens == 0:
            sources = [t for t in args if isinstance(t, Tensor) and t.shape == result.shape]
            if func.overloadpacket in COPYING:
                self.written[func.overloadpacket.__name__] += result.numel() // self.tokens
            elif func.overloadpacket is not aten.mm and len({order(t) for t in sources}) > 1:
                self.written["mixed"] += result.numel() // self.tokens
        return result


def order(x: Tensor) -> tuple[int, ...]:
    """Its dimensions, from the one whose steps in memory are largest."""
    return tuple(sorted((d for d in range(x.ndim) if x.shape[d] > 1 and x.stride(d)), key=x.stride, reverse=True))


def hidden(run: Callable[..., Any], *inputs: Tensor) -> tuple[Any, list[Tensor]]:
    """(run(*inputs), the inputs as leaves of its graph), outside of every mode."""
    with _disable_current_modes(), torch.enable_grad():
        leaves = [t.detach().float().requires_grad_() for t in inputs]
        return run(*leaves), leaves


def laid_out(values: Tensor, like: Tensor) -> Tensor:
    """The values in the layout of empty_like(like)."""
    with _disable_current_modes():
        return torch.empty_like(like).copy_(values)


def gradients(outputs: Tensor, leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    with _disable_current_modes():
        return list(torch.autograd.grad(outputs, leaves, dout.float()))


def along(x_BCT: Tensor) -> Tensor:
    return x_BCT if x_BCT.stride(-1) == 1 else x_BCT.contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, activation: Any) -> tuple:
    """(y (B, C, T), the leaves of its graph) of x (B, C, T), in a layout that the library's kernels have."""
    last = channels_last(x)
    if last:
        assert x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == x.storage_offset() % 8 == 0
    else:
        assert x.stride(2) == 1
        if x.shape[2] % 8 == 0:  # then its threads load eight at once
            assert x.stride(0) % 8 == x.stride(1) % 8 == x.storage_offset() % 8 == 0
    assert ids is None or (last and ids.dtype == torch.int32 and ids.is_contiguous())
    assert weight.dtype == torch.float32

    def run(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        kept = {"activation": activation, "doc_ids": ids, "backend": "plain"}
        y_BTC, _ = conv.causal_conv(x.transpose(1, 2), weight[:, None], *bias, **kept)
        return y_BTC.transpose(1, 2)

    return hidden(run, x, weight, *([] if bias is None else [bias]))


def channels_last(x_BCT: Tensor) -> bool:
    return x_BCT.stride(1) == 1 and x_BCT.stride(2) > 1


class Convolution(torch.autograd.Function):
    """causal_conv1d_fn of x (B, C, T)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, activation: Any):
        if x.stride(2) != 1 and x.stride(1) != 1:
            x = x.contiguous()
        ctx.y, ctx.leaves = convolve(x, weight, bias, seq_idx, activation)
        ctx.like = x
        return laid_out(ctx.y, x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor):
        if dout.stride(2) != 1 and dout.stride(1) != 1:
            dout = dout.contiguous()
        if channels_last(ctx.like) and dout.stride(1) != 1:
            dout = dout.transpose(1, 2).contiguous().transpose(1, 2)
        elif not channels_last(ctx.like):
            dout = along(dout)
        dx, *rest = gradients(ctx.y, ctx.leaves, dout)
        return laid_out(dx, ctx.like), rest[0], rest[1] if len(rest) > 1 else None, None, None


def convolution_forward(x, weight, bias, seq_idx, initial_states, final_states_out, silu):
    assert initial_states is None and final_states_out is None
    return laid_out(convolve(x, weight, bias, seq_idx, "silu" if silu else None)[0], x)


def convolution_backward(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial, silu):
    assert initial_states is None and dfinal_states is None and not return_dinitial
    assert channels_last(x) and dout.stride(1) == dx.stride(1) == 1 and dx.shape == x.shape
    y, leaves = convolve(x, weight, bias, seq_idx, "silu" if silu else None)
    found, dweight, *dbias = gradients(y, leaves, dout)
    with _disable_current_modes():
        dx.copy_(found)
    return dx, dweight, dbias[0] if dbias else None, None


class Scan(torch.autograd.Function):
    """selective_scan_fn of u, delta (B, C, T), B and C (B, N, T)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor):
        u, delta, B, C = (along(t) for t in (u, delta, B, C))
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == bias.dtype == torch.float32

        def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor, *D: Tensor) -> Any:
            over_time = [t.transpose(1, 2) for t in (u, delta, B, C)]
            skip = D[0] if D else torch.zeros_like(bias)
            y, state = selective_scan.selective_scan(*over_time[:2], A, *over_time[2:], skip, bias, backend="plain")
            return y.transpose(1, 2), state

        (ctx.y, state), ctx.leaves = hidden(run, u, delta, A, B, C, bias, *([] if D is None else [D]))
        ctx.like = u, delta, B, C
        return laid_out(ctx.y, delta), state.detach()

    @staticmethod
    def backward(ctx: Any, dout: Tensor, *_: Any):
        du, ddelta, dA, dB, dC, dbias, *dD = gradients(ctx.y, ctx.leaves, along(dout))
        du, ddelta, dB, dC = (laid_out(g, t) for g, t in zip((du, ddelta, dB, dC), ctx.like))
        return du, ddelta, dA, dB, dC, dD[0] if dD else None, dbias


class Chunked(torch.autograd.Function):
    """mamba_chunk_scan_combined of x (B, T, H, P), dt (B, T, H), B and C (B, T, G, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, ids: Any):
        assert x.dtype == B.dtype == C.dtype and A.dtype == torch.float32
        B, C = along(B), along(C)
        if x.stride(-1) != 1 and x.stride(1) != 1:
            x = x.contiguous()
        ctx.like = x, dt, B, C

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return ssd.ssd(*tensors, doc_ids=ids, backend="plain")

        (ctx.y, state), ctx.leaves = hidden(run, x, dt, A, B, C, D, bias)
        return laid_out(ctx.y, x.new_empty(x.shape)), state.detach()

    @staticmethod
    def backward(ctx: Any, dout: Tensor, *_: Any):
        dx, ddt, dA, dB, dC, dD, dbias = gradients(ctx.y, ctx.leaves, along(dout))
        dx, ddt, dB, dC = (laid_out(g, t) for g, t in zip((dx, ddt, dB, dC), ctx.like))
        return dx, ddt, dA, dB, dC, dD, dbias, None


def install(monkeypatch: Any) -> None:
    """Have the kernels' rows run the stand-ins, on a CPU as on a GPU with both libraries."""

    def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
        return Convolution.apply(x, weight, bias, seq_idx, activation)

    def selective_scan_fn(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, return_last_state=False):
        assert delta_softplus and return_last_state
        return Scan.apply(u, delta, A, B, C, D, delta_bias)

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk, *, D, dt_bias, initial_states, seq_idx, **options):
        assert initial_states is None and options == {"dt_softplus": True, "return_final_states": True}
        return Chunked.apply(x, dt, A, B, C, D, dt_bias, seq_idx)

    kernels = SimpleNamespace(
        causal_conv1d_fn=causal_conv1d_fn,
        causal_conv1d_fwd_function=convolution_forward,
        causal_conv1d_bwd_function=convolution_backward,
        selective_scan_fn=selective_scan_fn,
        mamba_chunk_scan_combined=mamba_chunk_scan_combined,
    )
    for ops, row in ((conv, "causal_conv1d"), (selective_scan, "mamba_ssm"), (ssd, "mamba_ssm")):
        monkeypatch.setattr(ops, "optional", lambda module: kernels)
        monkeypatch.setattr(ops, "missing", lambda module: "")
        refuses = ops.BACKENDS[row].refuses
        on_a_gpu = partial(lambda refuses, request: refuses(request._replace(device="cuda")), refuses)
        monkeypatch.setitem(ops.BACKENDS, row, ops.BACKENDS[row]._replace(refuses=on_a_gpu))
