"""Selective scan of Mamba (arXiv:2312.00752): one entry point, a kernel, plain references.

    y_BTC, state_BCN = selective_scan(x_BTC, dt_BTC, A_CN, B_BTN, C_BTN, D_C, dt_bias_C, doc_ids=..., state=...)

    d_t = softplus(dt_t + dt_bias)
    h_t = exp(d_t A) h_(t-1) + d_t B_t x_t        per channel and state
    y_t = C_t . h_t + D x_t

Shapes: B batch, T tokens, C channels, N states per channel; L tokens of a chunk, M chunks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.backends import Backend, choose, explain_table, missing, optional
from lit_gpt.ops.dtypes import upcast

STEPS = 8  # up to so many tokens, one after the other is fastest
MAX_STATES = 256  # of mamba_ssm's kernel

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
    request = Request(
        x_BTC.device.type, x_BTC.dtype, x_BTC.shape[1], A_CN.shape[1], doc_ids is not None, state is not None
    )
    name = choose("selective scan", BACKENDS, request, backend)
    constants = (upcast(D_C), upcast(dt_bias_C))
    return BACKENDS[name].run(Inputs(x_BTC, dt_BTC, upcast(A_CN), B_BTN, C_BTN, *constants, doc_ids, state))


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 4096, 16, False, False))


def document_starts(doc_ids: Tensor) -> Tensor:
    """True at the first token of each document but a row's first, (B, T)."""
    return F.pad(doc_ids[:, 1:] != doc_ids[:, :-1], (1, 0))


def _terms(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """log of the decay, -inf where a document starts, and what is added to the state; (B, T, C, N) each."""
    dt_BTC = F.softplus(upcast(inputs.dt_BTC) + inputs.dt_bias_C)
    log_decay_BTCN = dt_BTC[..., None] * inputs.A_CN
    if inputs.doc_ids is not None:
        log_decay_BTCN = log_decay_BTCN.masked_fill(document_starts(inputs.doc_ids)[..., None, None], -torch.inf)
    added_BTCN = (dt_BTC * upcast(inputs.x_BTC))[..., None] * upcast(inputs.B_BTN)[:, :, None]
    return log_decay_BTCN, added_BTCN


def _read(inputs: Inputs, h_BTCN: Tensor) -> Tensor:
    y_BTC = torch.einsum("btcn,btn->btc", h_BTCN, upcast(inputs.C_BTN)) + inputs.D_C * upcast(inputs.x_BTC)
    return y_BTC.to(inputs.x_BTC.dtype)


def _recur(decay_T: Tensor, added_T: Tensor, state: Tensor) -> Tensor:
    """Every state of h = decay h + added, along dimension 0."""
    states = []
    for decay, added in zip(decay_T, added_T):
        state = torch.addcmul(added, decay, state)
        states.append(state)
    return torch.stack(states)


def _steps(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One token after the other, for cached decoding."""
    log_decay_BTCN, added_BTCN = _terms(inputs)
    start = torch.zeros_like(added_BTCN[:, 0]) if inputs.state_BCN is None else inputs.state_BCN
    h_TBCN = _recur(log_decay_BTCN.exp().transpose(0, 1), added_BTCN.transpose(0, 1), start)
    return _read(inputs, h_TBCN.transpose(0, 1)), h_TBCN[-1]


def _reference(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """sqrt(T) chunks of sqrt(T) tokens: all chunks at once, then from chunk to chunk; does everything.

    No decay is ever divided by, so nothing overflows.
    """
    length = inputs.x_BTC.shape[1]
    chunk = math.isqrt(length - 1) + 1
    log_decay, added = (_chunks(x, chunk) for x in _terms(inputs))
    start = torch.zeros_like(added[0, 0]) if inputs.state_BCN is None else inputs.state_BCN
    since_LMBCN = log_decay.cumsum(0).exp()
    h_LMBCN = _recur(log_decay.exp(), added, torch.zeros_like(added[0]))
    ends_MBCN = _recur(since_LMBCN[-1], h_LMBCN[-1], start)
    before_MBCN = torch.cat([start[None], ends_MBCN[:-1]])
    h_LMBCN = torch.addcmul(h_LMBCN, since_LMBCN, before_MBCN)
    h_BTCN = h_LMBCN.permute(2, 1, 0, 3, 4).flatten(1, 2)[:, :length]
    return _read(inputs, h_BTCN), ends_MBCN[-1]


def _chunks(x_BTCN: Tensor, chunk: int) -> Tensor:
    """(L, M, B, C, N). Zeros at the end neither decay the state nor add to it."""
    padded = F.pad(x_BTCN, (0, 0, 0, 0, 0, -x_BTCN.shape[1] % chunk))
    return padded.unflatten(1, (-1, chunk)).permute(2, 1, 0, 3, 4)


@torch.compiler.disable
def _mamba_ssm(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The mamba_ssm package's CUDA kernel."""
    x, dt, A, B, C, D, dt_bias, doc_ids, _ = inputs
    skip = D
    if doc_ids is not None:
        x, dt, skip = *reset_at_documents(x, dt, dt_bias, doc_ids), None
    x_BCT, dt_BCT, B_BNT, C_BNT = (t.to(x.dtype).transpose(1, 2) for t in (x, dt, B, C))
    run = optional("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    y_BCT, state = run(
        x_BCT, dt_BCT, A, B_BNT, C_BNT, skip, delta_bias=dt_bias, delta_softplus=True, return_last_state=True
    )
    y_BTC = y_BCT.transpose(1, 2)
    if skip is None:
        y_BTC = torch.addcmul(y_BTC, inputs.x_BTC, D).to(y_BTC.dtype)
    return y_BTC, state


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
    return x_BTC, dt_BTC.masked_fill(starts_BT1, RESET)


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


BACKENDS: dict[str, Backend] = {
    "steps": Backend(_steps, lambda r: "" if r.length <= STEPS else f"it is for at most {STEPS} tokens"),
    "mamba_ssm": Backend(_mamba_ssm, _mamba_ssm_refuses),
    "reference": Backend(_reference, lambda r: ""),
}
