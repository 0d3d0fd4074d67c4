"""Delta rules: DeltaNet (arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464), Kimi Delta Attention (arXiv:2510.26692).

o_BTHV, state = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, scale=..., doc_ids=..., state=...)

S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T      o_t = scale q_t S_t
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lit_gpt.ops import delta_rule_triton
from lit_gpt.ops.backends import Backend, Memory, explain_table, optional
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.linear_recurrence import (
    Call,
    Decay,
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
from lit_gpt.ops.selective_scan import document_starts
from lit_gpt.ops.triton_calls import first_tokens

KEY_DIM_LIMIT = 256  # fla's chunked kernels assert it

# Names in fla.ops by the form of the decay: for whole sequences, and token by token.
CHUNKED: dict[Decay, str] = {"none": "chunk_delta_rule", "head": "chunk_gated_delta_rule", "channel": "chunk_kda"}
STEPS: dict[Decay, str] = {
    "none": "fused_recurrent_delta_rule",
    "head": "fused_recurrent_gated_delta_rule",
    "channel": "fused_recurrent_kda",
}


def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    doc_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """o (B, T, H, V) in v's dtype, and the state (B, H, K, V) after the last token.

    beta_BTH: in [0, 1], or up to 2 for negative eigenvalues (arXiv:2411.12537).
    log_decay: g <= 0: (B, T, H), (B, T, H, K), or None for no decay. normalize: queries and
    keys are divided by sqrt(sum(x^2) + 1e-6) first; without it keys should have norm 1 at most.
    The rest, and what is raised, as in lit_gpt.ops.linear_attention.linear_attention.
    """
    scale = 1 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    call = Call(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, scale, normalize, doc_ids, cu_seqlens, state)
    return dispatch("delta rule", BACKENDS, call, backend)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable for training on this device with decays per head, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, decay="head"))


@outside_graphs
def _steps(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's token-by-token kernels, for decoding."""
    return _run(STEPS[decay_form(call.log_decay)], call, call.log_decay)


@outside_graphs
def _chunked(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's chunked kernels: delta_rule, gated_delta_rule or kda, by the decay."""
    return _run(CHUNKED[decay_form(call.log_decay)], call, call.log_decay)


@outside_graphs
def _kda(call: Call) -> tuple[Tensor, Tensor | None]:
    """fla's kda kernel, with the decay of a head on each of its channels.

    It does more work than the kernel of its own, whose gradients some versions of Triton compile wrongly.
    """
    assert call.log_decay is not None
    return _run("chunk_kda", call, call.log_decay[..., None].expand_as(call.k))


def _run(kernel: str, call: Call, log_decay: Tensor | None) -> tuple[Tensor, Tensor | None]:
    run = functools.partial(getattr(optional("fla.ops"), kernel), use_qk_l2norm_in_kernel=call.normalize)
    assert call.beta is not None
    return by_document(run, call, q=call.q, k=call.k, v=call.v, beta=upcast(call.beta), g=log_decay)


def _triton(call: Call) -> tuple[Tensor, Tensor | None]:
    """This project's own Triton kernels (kernels/delta_rule.py), compiled when first used; in a block's graph."""
    q, k, v, beta, log_decay, scale, normalize, ids, _, state = call
    assert beta is not None
    starts_BT = None if ids is None else first_tokens(document_starts(ids))
    o, last = delta_rule_triton.gated_delta_rule(q, k, v, beta, log_decay, starts_BT, state, scale, normalize)
    return o, None if state is None else last


def _triton_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.decay == "channel":
        return "its decays are those of heads"
    return delta_rule_triton.refuses(request.dtype, request.key_dim, request.value_dim)


def _triton_memory(call: Call) -> Memory:
    return delta_rule_triton.memory(call.q, call.v.shape[-1])


def _chunked_refuses(request: Request) -> str:
    reason = library_refuses(request)
    if not reason and request.key_dim > KEY_DIM_LIMIT:
        reason = f"its key dimension is at most {KEY_DIM_LIMIT}, not {request.key_dim}"
    if reason or request.decay != "head" or not request.gradients:
        return reason
    return wrong_gradients(tilelang_helps=True)


def _kda_refuses(request: Request) -> str:
    if request.decay != "head":
        return "it stands in for fla on decays per head"
    return _chunked_refuses(request._replace(decay="channel"))


BACKENDS: dict[str, Backend] = {
    "fla_steps": Backend(_steps, steps_refuse),
    "triton": Backend(_triton, _triton_refuses, memory=_triton_memory),
    "fla": Backend(_chunked, _chunked_refuses),
    "fla_kda": Backend(_kda, _kda_refuses),
    "plain": Backend(plain, lambda r: ""),
}
