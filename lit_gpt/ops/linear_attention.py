"""Linear attention with decay: RetNet (arXiv:2307.08621), GLA (arXiv:2312.06635).

o_BTHV, state = linear_attention(q_BTHK, k_BTHK, v_BTHV, log_decay, scale=..., doc_ids=..., state=...)

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T      o_t = scale q_t S_t
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lit_gpt.ops.backends import Backend, explain_table, optional
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.linear_recurrence import (
    Call,
    Request,
    by_document,
    decay_form,
    dispatch,
    library_refuses,
    outside_graphs,
    plain,
    steps_refuse,
    wrong_gradients,
)


def linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    doc_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """o (B, T, H, V) in v's dtype, and the state after the last token.

    log_decay: g <= 0: (H,) constants, which get no gradient from the kernels; (B, T, H);
    (B, T, H, K); None for no decay. scale: None is 1/sqrt(K). doc_ids: (B, T) integers, each
    document's positions together; the state starts from zero in each. cu_seqlens: their
    offsets as in lit_gpt.nn.context.Context, for the kernels. state: (B, H, K, V) before the
    first token, which goes on with each row's first document; None is zero, and no state
    comes back. The returned one is each row's last document's, in at least fp32.
    Raises UserError for a backend that is unknown or does not do this.
    """
    scale = 1 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    call = Call(q_BTHK, k_BTHK, v_BTHV, None, log_decay, scale, False, doc_ids, cu_seqlens, state)
    return dispatch("linear attention", BACKENDS, call, backend)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable for training on this device with decays per head, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, decay="head"))


@outside_graphs
def _steps(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's token-by-token kernels, for decoding."""
    if decay_form(call.log_decay) == "channel":
        return _run("fused_recurrent_gla", call, gk=call.log_decay)
    return _per_head("fused_recurrent_simple_gla", call)


@outside_graphs
def _chunked(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's chunked kernels: simple_gla for decays per head, gla for decays per channel."""
    return _gla(call) if decay_form(call.log_decay) == "channel" else _per_head("chunk_simple_gla", call)


@outside_graphs
def _gla(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's gla kernel; decays per head are repeated on their channels, where Triton miscompiles their own kernel."""
    assert call.log_decay is not None
    g = call.log_decay if call.log_decay.ndim == 4 else call.log_decay[..., None].expand_as(call.k)
    return _run("chunk_gla", call, g=upcast(g))


def _per_head(kernel: str, call: Call) -> tuple[Tensor, Tensor | None]:
    if decay_form(call.log_decay) == "head":
        return _run(kernel, call, g=call.log_decay)
    run = functools.partial(getattr(optional("fla.ops"), kernel), g_gamma=call.log_decay)
    return by_document(run, call, q=call.q, k=call.k, v=call.v)


def _run(kernel: str, call: Call, **decay: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return by_document(getattr(optional("fla.ops"), kernel), call, q=call.q, k=call.k, v=call.v, **decay)


def _chunked_refuses(request: Request) -> str:
    reason = library_refuses(request)
    if reason or request.decay == "channel":
        return reason
    if request.key_dim % 2 or request.value_dim % 2:
        return f"its head dimensions must be even, not {request.key_dim} and {request.value_dim}"
    return wrong_gradients(tilelang_helps=False) if request.decay == "head" and request.gradients else ""


def _gla_refuses(request: Request) -> str:
    return library_refuses(request) or ("" if request.decay == "head" else "it stands in for fla on decays per head")


BACKENDS: dict[str, Backend] = {
    "fla_steps": Backend(_steps, steps_refuse),
    "fla": Backend(_chunked, _chunked_refuses),
    "fla_gla": Backend(_gla, _gla_refuses),
    "plain": Backend(plain, lambda r: ""),
}
