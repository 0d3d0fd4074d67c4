"""State-space duality of Mamba-2 (arXiv:2405.21060): one entry point, two kernels, plain torch.

    y_BTHP, state_BHPN = ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, dt_bias_H, doc_ids=..., state=...)

    d_t = softplus(dt_t + dt_bias)
    S_t = exp(d_t A) S_(t-1) + d_t x_t B_t^T      per head, P x N
    y_t = S_t C_t + D x_t

Shapes: B batch, T tokens, H heads of P channels, N states, G groups of heads that share B and C
(H % G == 0), K each; M chunks of L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import ssd_triton
from lit_gpt.ops.backends import Backend, Memory, explain_table, missing, optional, run
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.selective_scan import document_starts
from lit_gpt.ops.triton_calls import first_tokens

STEPS = 8  # up to so many tokens, one after the other is faster than chunks: cached decoding gives one at a time
CHUNK = 64  # of the plain form; products within a chunk grow with it, steps between chunks shrink
KERNEL_CHUNK = 256  # tokens per chunk of mamba_ssm's kernels: chunk_size of its Mamba2 module


class Request(NamedTuple):
    """What a backend is chosen by."""

    device: str
    dtype: torch.dtype
    length: int
    width: int
    states: int


class Inputs(NamedTuple):
    """One call, dt before its bias and softplus. A, D and dt_bias are in at least fp32."""

    x_BTHP: Tensor
    dt_BTH: Tensor
    A_H: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor
    D_H: Tensor
    dt_bias_H: Tensor
    doc_ids: Tensor | None
    state_BHPN: Tensor | None


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    doc_ids: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The output (B, T, H, P) in x's dtype, and the state after the last token (B, H, P, N), at least fp32.

    A is negative. doc_ids: (B, T) integers, equal within a document; the state starts from zero
    at each. state: (B, H, P, N), what an earlier call returned, of the document of each row's
    first token; None for zeros.
    Raises UserError for a backend that is unknown or does not do this.
    """
    request = Request(x_BTHP.device.type, x_BTHP.dtype, x_BTHP.shape[1], x_BTHP.shape[3], B_BTGN.shape[3])
    constants = (upcast(D_H), upcast(dt_bias_H))
    inputs = Inputs(x_BTHP, dt_BTH, upcast(A_H), B_BTGN, C_BTGN, *constants, doc_ids, state)
    return run("ssd", BACKENDS, request, backend, inputs)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 4096, 64, 128))


class Terms(NamedTuple):
    """What the plain forms compute with, in at least fp32; H heads as G groups of K heads, which share B and C.

    log_decay: d A. added: d x. ids: documents, zeros without any. start: the first state.
    """

    log_decay_BTGK: Tensor
    added_BTGKP: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor
    ids_BT: Tensor
    start_BGKPN: Tensor


def _terms(inputs: Inputs) -> Terms:
    batch, length, heads, width = inputs.x_BTHP.shape
    groups, states = inputs.B_BTGN.shape[2:]
    dt_BTH = F.softplus(upcast(inputs.dt_BTH) + inputs.dt_bias_H)
    added = dt_BTH[..., None] * upcast(inputs.x_BTHP)
    ids, start = inputs.doc_ids, inputs.state_BHPN
    ids = added.new_zeros((batch, length), dtype=torch.long) if ids is None else ids
    start = added.new_zeros(batch, heads, width, states) if start is None else start
    of_heads = ((dt_BTH * inputs.A_H, 2), (added, 2), (start, 1))
    log_decay, added, start = (t.unflatten(dim, (groups, -1)) for t, dim in of_heads)
    return Terms(log_decay, added, upcast(inputs.B_BTGN), upcast(inputs.C_BTGN), ids, start)


def _with_skip(inputs: Inputs, y_BTGKP: Tensor) -> Tensor:
    return (y_BTGKP.flatten(2, 3) + inputs.D_H[:, None] * upcast(inputs.x_BTHP)).to(inputs.x_BTHP.dtype)


def _steps(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One token after the other, for cached decoding."""
    terms = _terms(inputs)
    decay_BTGK = terms.log_decay_BTGK.exp() * ~document_starts(terms.ids_BT)[..., None, None]
    state, outputs = terms.start_BGKPN, []
    for t in range(decay_BTGK.shape[1]):
        added_BGKPN = terms.added_BTGKP[:, t, ..., None] * terms.B_BTGN[:, t, :, None, None]
        state = torch.addcmul(added_BGKPN, decay_BTGK[:, t, ..., None, None], state)
        outputs.append(torch.einsum("bgkpn,bgn->bgkp", state, terms.C_BTGN[:, t]))
    return _with_skip(inputs, torch.stack(outputs, dim=1)), state.flatten(1, 2)


def _plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The paper's chunked algorithm as matrix products in fp32; does everything."""
    terms, length = _terms(inputs), inputs.x_BTHP.shape[1]
    chunk = min(CHUNK, length)
    log_decay, added, B, C, ids = (_chunks(t, chunk) for t in terms[:5])
    # Log decay from the chunk's start up to and with each token; decays between tokens are differences of it.
    total_BMLGK = log_decay.cumsum(2)
    before_BM = torch.cat([ids[:, 0, :1], ids[:, :-1, -1]], dim=1)  # the document the last chunk ended in
    # To the chunk's end, from its start, and through all of it: 0 across a document boundary.
    to_end_BMLGK = _decay(total_BMLGK[:, :, -1:] - total_BMLGK, ids == ids[:, :, -1:])
    since_BMLGK = _decay(total_BMLGK, ids == before_BM[..., None])
    through_BMGK = _decay(total_BMLGK[:, :, -1], ids[:, :, -1] == before_BM)
    # What each chunk adds to the state, as if it had started from zero.
    ends_BMGKPN = torch.einsum("bmlgkp,bmlgn->bmgkpn", added * to_end_BMLGK[..., None], B)
    # The states at the starts of the chunks: the one loop, over T / CHUNK steps.
    state, starts = terms.start_BGKPN, []
    for m in range(ids.shape[1]):
        starts.append(state)
        state = torch.addcmul(ends_BMGKPN[:, m], through_BMGK[:, m, ..., None, None], state)
    # A token reads the state that its chunk started with, and the tokens before it in the chunk.
    y_BMLGKP = torch.einsum("bmlgn,bmgkpn->bmlgkp", C, torch.stack(starts, dim=1)) * since_BMLGK[..., None]
    y_BMLGKP = y_BMLGKP + _within_chunks(total_BMLGK, added, B, C, ids)
    return _with_skip(inputs, y_BMLGKP.flatten(1, 2)[:, :length]), state.flatten(1, 2)


def _chunks(x_BTX: Tensor, chunk: int) -> Tensor:
    """(B, M, L, ...). What is padded belongs to the last document, decays nothing, adds nothing.

    Documents, which are whole numbers, are padded with the last id, everything else with zeros.
    """
    fill = torch.zeros_like(x_BTX[:, -1:]) if x_BTX.is_floating_point() else x_BTX[:, -1:]
    padding = fill.expand(-1, -x_BTX.shape[1] % chunk, *x_BTX.shape[2:])
    return torch.cat([x_BTX, padding], dim=1).unflatten(1, (-1, chunk))


def _decay(log_decay_XGK: Tensor, same_X: Tensor) -> Tensor:
    """exp(log_decay) where it is one document, else 0; never of a positive number that counts."""
    return log_decay_XGK.masked_fill(~same_X[..., None, None], -torch.inf).exp()


def _within_chunks(total_BMLGK: Tensor, added: Tensor, B: Tensor, C: Tensor, ids_BML: Tensor) -> Tensor:
    """What the tokens of a chunk read of each other, as masked attention: S in place of L for the read ones."""
    same_BMLS = (ids_BML[..., None] == ids_BML[:, :, None]).tril()
    # L and S last, as the products want them
    total_BMGKL = total_BMLGK.movedim(2, -1)
    log_decay_BMGKLS = total_BMGKL[..., None] - total_BMGKL[..., None, :]
    decay_BMGKLS = log_decay_BMGKLS.masked_fill(~same_BMLS[:, :, None, None], -torch.inf).exp()
    scores_BMGLS = torch.einsum("bmlgn,bmsgn->bmgls", C, B)  # once for the heads of a group
    return torch.einsum("bmgkls,bmsgkp->bmlgkp", scores_BMGLS[:, :, :, None] * decay_BMGKLS, added)


@torch.compiler.disable
def _mamba_ssm(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The mamba_ssm package's Triton kernels."""
    x, dt, A, B, C, D, dt_bias, doc_ids, state = inputs
    # The kernels take the first state for one of document 0, and no document may be negative.
    ids = None if doc_ids is None else document_starts(doc_ids).cumsum(1, dtype=torch.int32)
    return optional("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined(
        x,
        dt,
        A,
        B.to(x.dtype),
        C.to(x.dtype),
        KERNEL_CHUNK,
        D=D,
        dt_bias=dt_bias,
        initial_states=state,
        seq_idx=ids,
        dt_softplus=True,
        return_final_states=True,
    )


def _mamba_ssm_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype == torch.float64:
        return "it has no float64"
    return missing("mamba_ssm.ops.triton.ssd_combined")


def _mamba_ssm_memory(inputs: Inputs) -> Memory:
    """By ssd_combined.py of mamba_ssm (commit d757aef), where a chunk of L tokens has one state for each head.

    Kept are the sums of log decays, in fp32. Backward has most where gradients go from state to state: states and their
    gradients in fp32, both once more in x's dtype, C B^T, and for each head the sums and the steps again, in fp32.
    """
    (heads, width), (groups, states) = inputs.x_BTHP.shape[2:], inputs.B_BTGN.shape[2:]
    of_states = heads * width * states / KERNEL_CHUNK * (2 * 4 + 2 * inputs.x_BTHP.element_size())
    return Memory(4 * heads, of_states + 4 * groups * KERNEL_CHUNK + 2 * 4 * heads)


def _triton(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """This project's own Triton kernels (kernels/ssd.py), compiled when first used."""
    ids = inputs.doc_ids
    starts_BT = None if ids is None else first_tokens(document_starts(ids))
    return ssd_triton.ssd(*inputs[:7], starts_BT, inputs.state_BHPN)


def _triton_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    return ssd_triton.refuses(request.dtype, request.width, request.states)


def _triton_memory(inputs: Inputs) -> Memory:
    return ssd_triton.memory(inputs.x_BTHP, inputs.B_BTGN.shape[3])


BACKENDS: dict[str, Backend] = {
    "steps": Backend(_steps, lambda r: "" if r.length <= STEPS else f"it is for at most {STEPS} tokens"),
    "triton": Backend(_triton, _triton_refuses, memory=_triton_memory),
    "mamba_ssm": Backend(_mamba_ssm, _mamba_ssm_refuses, memory=_mamba_ssm_memory),
    "plain": Backend(_plain, lambda r: ""),
}
