"""Selective scan of Mamba (arXiv:2312.00752): one entry point, two kernels, plain torch.

    y_BTC, state_BCN = selective_scan(x_BTC, dt_BTC, A_CN, B_BTN, C_BTN, D_C, dt_bias_C, doc_ids=..., state=...)

    d_t = softplus(dt_t + dt_bias)
    h_t = exp(d_t A) h_(t-1) + d_t B_t x_t        per channel and state
    y_t = C_t . h_t + D x_t

Shapes: B batch, T tokens, C channels, N states per channel; L tokens of a chunk, M chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import selective_scan_cuda
from lit_gpt.ops.backends import Backend, Memory, choose, explain_table, missing, optional, run
from lit_gpt.ops.dtypes import upcast

OPERATION = "selective scan"
STEPS = 8  # up to so many tokens, one after the other is faster than chunks: cached decoding gives one at a time
MAX_STATES = 256  # of mamba_ssm's kernel
KERNEL_CHUNK = 2048  # tokens per chunk of it, by its selective_scan.cpp

# A step this long forgets everything: exp(RESET A) is 0 in fp32 for every A < -1e-7. As a power of
# two it scales without rounding, and adding a bias below 64 in fp32 leaves it as it is.
RESET = 2.0**30


class Request(NamedTuple):
    """What a backend is chosen by."""

    device: str
    dtype: torch.dtype
    length: int
    states: int
    documents: bool
    state: bool


class Inputs(NamedTuple):
    """One call, dt before its bias and softplus. A, D and dt_bias are in at least fp32."""

    x_BTC: Tensor
    dt_BTC: Tensor
    A_CN: Tensor
    B_BTN: Tensor
    C_BTN: Tensor
    D_C: Tensor
    dt_bias_C: Tensor
    doc_ids: Tensor | None
    state_BCN: Tensor | None


def selective_scan(
    x_BTC: Tensor,
    dt_BTC: Tensor,
    A_CN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_C: Tensor,
    dt_bias_C: Tensor,
    *,
    doc_ids: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The output (B, T, C) in x's dtype, and the state after the last token (B, C, N), at least fp32.

    A is negative. doc_ids: (B, T) integers, equal within a document; the state starts from zero
    at each. state: (B, C, N), what an earlier call returned, of the document of each row's first
    token; None for zeros. The mamba_ssm kernel gives no gradient to the returned state.
    Raises UserError for a backend that is unknown or does not do this.
    """
    constants = (upcast(D_C), upcast(dt_bias_C))
    inputs = Inputs(x_BTC, dt_BTC, upcast(A_CN), B_BTN, C_BTN, *constants, doc_ids, state)
    return run(OPERATION, BACKENDS, _request(x_BTC, A_CN.shape[1], doc_ids, state), backend, inputs)


def reads_along_time(
    x_BTX: Tensor, states: int, doc_ids: Tensor | None, state: Tensor | None, backend: str = "auto"
) -> bool:
    """Whether the backend of a scan over these tokens reads each channel along time, as neighbours in memory.

    x: any tensor of the scan's tokens and dtype. It takes every layout, but copies others.
    """
    return choose(OPERATION, BACKENDS, _request(x_BTX, states, doc_ids, state), backend) == "mamba_ssm"


def _request(x_BTX: Tensor, states: int, doc_ids: Tensor | None, state: Tensor | None) -> Request:
    return Request(x_BTX.device.type, x_BTX.dtype, x_BTX.shape[1], states, doc_ids is not None, state is not None)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 4096, 16, False, False))


def document_starts(doc_ids: Tensor) -> Tensor:
    """True at the first token of each document but a row's first, (B, T)."""
    return F.pad(doc_ids[:, 1:] != doc_ids[:, :-1], (1, 0))


def _terms(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step d (RESET where a document starts), d x, B and C, in at least fp32."""
    dt_BTC = F.softplus(upcast(inputs.dt_BTC) + inputs.dt_bias_C)
    added_BTC, forget_BTC = dt_BTC * upcast(inputs.x_BTC), dt_BTC
    if inputs.doc_ids is not None:
        forget_BTC = forget_BTC.masked_fill(document_starts(inputs.doc_ids)[..., None], RESET)
    return forget_BTC, added_BTC, upcast(inputs.B_BTN), upcast(inputs.C_BTN)


def _start(inputs: Inputs, added_BTC: Tensor) -> Tensor:
    """The first state, (B, N, C): products along C, which is long, are fast."""
    if inputs.state_BCN is not None:
        return inputs.state_BCN.transpose(1, 2)
    return added_BTC.new_zeros(added_BTC.shape[0], *inputs.A_CN.T.shape)


def _recurrence(forget_TXC: Tensor, added_TXC: Tensor, B_TXN: Tensor, A_CN: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each token, the decay and what is added to the state, (X, N, C) each; X any dimensions."""
    terms, A_NC = zip(forget_TXC, added_TXC, B_TXN), A_CN.T.contiguous()
    return [((f[..., None, :] * A_NC).exp(), a[..., None, :] * b[..., None]) for f, a, b in terms]


def _states(recurrence: Iterable[tuple[Tensor, Tensor]], state: Tensor) -> list[Tensor]:
    """The state after each token."""
    states = []
    for decay, added in recurrence:
        state = torch.addcmul(added, decay, state)
        states.append(state)
    return states


def _read(states: list[Tensor], C_TXN: Tensor) -> Tensor:
    return torch.stack([(c[..., None, :] @ h)[..., 0, :] for h, c in zip(states, C_TXN)])


def _with_skip(inputs: Inputs, y_BTC: Tensor) -> Tensor:
    return (y_BTC + inputs.D_C * upcast(inputs.x_BTC)).to(inputs.x_BTC.dtype)


def _steps(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One token after the other, for cached decoding."""
    terms = _terms(inputs)
    forget, added, B, C = (t.transpose(0, 1) for t in terms)
    states = _states(_recurrence(forget, added, B, inputs.A_CN), _start(inputs, terms[1]))
    return _with_skip(inputs, _read(states, C).transpose(0, 1)), states[-1].transpose(1, 2)


def _plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """sqrt(T) chunks of sqrt(T) tokens, all chunks at once; does everything.

    First each chunk's last state from a zero one, then from chunk to chunk, then every state.
    Nothing is divided by a decay, so nothing overflows.
    """
    terms, length = _terms(inputs), inputs.x_BTC.shape[1]
    forget, added, B, C = (_chunks(t, math.isqrt(length - 1) + 1) for t in terms)
    start_BNC = _start(inputs, terms[1])
    # First pass: where every chunk ends if it starts from zero, all chunks at once.
    recurrence = _recurrence(forget, added, B, inputs.A_CN)
    ends_MBNC = _states(recurrence, torch.zeros_like(recurrence[0][1]))[-1]
    # Second: the decay through a whole chunk carries the true state from chunk to chunk.
    through_MBNC = (forget.sum(0)[..., None, :] * inputs.A_CN.T).exp()
    carried = [start_BNC, *_states(zip(through_MBNC, ends_MBNC), start_BNC)]
    # Third: the same recurrence again, each chunk from its true state.
    y_LMBC = _read(_states(recurrence, torch.stack(carried[:-1])), C)
    return _with_skip(inputs, y_LMBC.permute(2, 1, 0, 3).flatten(1, 2)[:, :length]), carried[-1].transpose(1, 2)


def _chunks(x_BTX: Tensor, chunk: int) -> Tensor:
    """(L, M, B, X). Zeros at the end neither decay the state nor add to it."""
    padded = F.pad(x_BTX, (0, 0, 0, -x_BTX.shape[1] % chunk))
    return padded.unflatten(1, (-1, chunk)).permute(2, 1, 0, 3)


def _cuda(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """This project's own CUDA kernels (selective_scan.cu), compiled when first used."""
    starts_BT = None if inputs.doc_ids is None else document_starts(inputs.doc_ids)
    return selective_scan_cuda.scan(*inputs[:7], starts_BT, inputs.state_BCN)


def _cuda_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    return selective_scan_cuda.refuses(request.dtype, request.states)


def _cuda_memory(inputs: Inputs) -> Memory:
    return selective_scan_cuda.memory(*inputs.A_CN.shape)


def _mamba_ssm(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The mamba_ssm package's CUDA kernel."""
    x, dt, A, B, C, D, dt_bias, doc_ids, _ = inputs
    if doc_ids is None:
        return _kernel(x, dt, A, B, C, D, dt_bias)
    y_BTC, state = _kernel(*reset_at_documents(x, dt, dt_bias, doc_ids), A, B, C, None, dt_bias)
    return torch.addcmul(y_BTC, x, D).to(y_BTC.dtype), state


@torch.compiler.disable()
def _kernel(
    x: Tensor, dt: Tensor, A_CN: Tensor, B: Tensor, C: Tensor, D_C: Tensor | None, dt_bias_C: Tensor
) -> tuple[Tensor, Tensor]:
    """The output (B, T, C), in memory as dt is, and the last state. What is not along time is copied."""
    run = optional("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    x_BCT, dt_BCT, B_BNT, C_BNT = (t.to(x.dtype).transpose(1, 2) for t in (x, dt, B, C))
    y_BCT, state = run(
        x_BCT, dt_BCT, A_CN, B_BNT, C_BNT, D_C, delta_bias=dt_bias_C, delta_softplus=True, return_last_state=True
    )
    return y_BCT.transpose(1, 2), state


def reset_at_documents(x_BTC: Tensor, dt_BTC: Tensor, dt_bias_C: Tensor, doc_ids: Tensor) -> tuple[Tensor, Tensor]:
    """x and dt for a scan that knows no documents and has no D: its states start from zero at each.

    At a document's first token dt becomes RESET, which decays the state to exactly 0, and x becomes
    d x / RESET, so that what is added to the state stays the same. The kernel's backward finds the
    decayed state as h - d x B and multiplies it by d: this must be exactly 0, and is, since with x
    and B in bfloat16 the product d x B has 16 significant bits and a power of two, exact in fp32.
    """
    starts_BT1 = document_starts(doc_ids)[..., None]
    step_BTC = F.softplus(upcast(dt_BTC) + dt_bias_C) / RESET
    x_BTC = torch.where(starts_BT1, (step_BTC * x_BTC).to(x_BTC.dtype), x_BTC)
    return x_BTC, torch.where(starts_BT1, RESET, dt_BTC)  # keeps the layout, which masked_fill does not


def _mamba_ssm_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype == torch.float64:
        return "it has no float64"
    if request.states > MAX_STATES:
        return f"it has at most {MAX_STATES} states per channel, not {request.states}"
    if request.state:
        return "it starts from a zero state"
    if request.documents and request.dtype != torch.bfloat16:
        return "its gradients are right with documents in bfloat16 only"
    return missing("mamba_ssm.ops.selective_scan_interface")


def _mamba_ssm_memory(inputs: Inputs) -> Memory:
    """Without documents. Kept: two numbers for each state of a chunk; made: the gradients of B and C; all in fp32."""
    channels, states = inputs.A_CN.shape
    return Memory(2 * 4 * channels * states / KERNEL_CHUNK, 2 * 4 * states)


BACKENDS: dict[str, Backend] = {
    "steps": Backend(_steps, lambda r: "" if r.length <= STEPS else f"it is for at most {STEPS} tokens"),
    "cuda": Backend(_cuda, _cuda_refuses, memory=_cuda_memory),
    "mamba_ssm": Backend(_mamba_ssm, _mamba_ssm_refuses, memory=_mamba_ssm_memory),
    "plain": Backend(_plain, lambda r: ""),
}
