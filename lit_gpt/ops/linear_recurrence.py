"""What linear attention and the delta rules share: one recurrence in plain torch, and the way to fla's kernels.

    S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T      o_t = scale q_t S_t

with S (K, V). Linear attention is the case without (I - beta k k^T) and with beta = 1.

Shapes: B batch, T tokens, H heads, K key and V value dimension of a head, N chunks of C tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.backends import Backend, missing, optional, run
from lit_gpt.ops.dtypes import upcast

Function = TypeVar("Function", bound=Callable[..., Any])
Decay = Literal["none", "constant", "head", "channel"]

CHUNK = 64  # tokens per chunk: the length of the kernels, and of the DeltaNet paper
CHANNEL_CHUNK = 16  # with a decay per channel every pair of a chunk has K decays, kept in memory: 16 times fewer
STEP_LIMIT = 64  # up to here token by token is the faster kernel, by fla's own layers
NORM_EPS = 1e-6  # under the root of the L2 norm, as in fla's kernels
HOPPER = 9  # major compute capability
WRONG_TRITON = (3, 4, 0), (3, 7, 1)  # from, to before: miscompiles a kernel of fla (its issue 640)


class Call(NamedTuple):
    """The arguments of one call; see lit_gpt.ops.linear_attention and lit_gpt.ops.delta_rule."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    log_decay: Tensor | None
    scale: float
    normalize: bool
    doc_ids: Tensor | None
    cu_seqlens: Tensor | None
    state: Tensor | None


class Request(NamedTuple):
    """What a backend is chosen by. gradients: a backward pass will follow."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    length: int = 4096
    key_dim: int = 128
    value_dim: int = 128
    decay: Decay = "none"
    gradients: bool = True


def describe(call: Call) -> Request:
    """The request of one call."""
    inputs = (call.q, call.k, call.v, call.beta, call.log_decay, call.state)
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    dims = call.q.shape[-1], call.v.shape[-1]
    return Request(call.q.device.type, call.q.dtype, call.q.shape[1], *dims, decay_form(call.log_decay), gradients)


def outside_graphs(function: Function) -> Function:
    """Not compiled: fla's kernels break the graph anyway, and the plain backend's loop would be unrolled."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


def dispatch(operation: str, table: Mapping[str, Backend], call: Call, backend: str) -> tuple[Tensor, Tensor | None]:
    """Run the row of the table that does the call. Raises UserError as lit_gpt.ops.backends.choose."""
    return run(operation, table, describe(call), backend, call)


def decay_form(log_decay: Tensor | None) -> Decay:
    """Which of the forms of a decay this is."""
    forms: dict[int, Decay] = {1: "constant", 3: "head", 4: "channel"}
    return "none" if log_decay is None else forms[log_decay.ndim]


@outside_graphs
def plain(call: Call) -> tuple[Tensor, Tensor | None]:
    """Plain torch, chunk by chunk, in at least fp32: exact for every form, and slow.

    Inside a chunk the WY form (arXiv:2406.06484, 2412.06464) turns the delta rule into linear
    attention to values u, which solve (I + A) u = beta (v - k_decayed S) with A strictly lower
    triangular. Every exponent is a sum of log decays between two positions, hence never
    positive; positions of another document are masked.
    """
    length = call.q.shape[1]
    size = min(length, CHANNEL_CHUNK if decay_form(call.log_decay) == "channel" else CHUNK)
    # From here on (B, H, N, C, ...): chunks of C tokens, all at once.
    q, k, v = (_chunks(upcast(x), size) for x in (call.q, call.k, call.v))
    if call.normalize:
        q, k = l2_norm(q), l2_norm(k)
    # g: log decay from the chunk's start up to and with each token. The decay from j to i is exp(g_i - g_j).
    g = _chunks(_four_dimensional(call.log_decay, call.q), size).to(q.dtype).cumsum(-2)
    visible, seen, kept = _masks(call.doc_ids, length, size, q.device)
    # Masked before exp: of a later position the difference is positive and may overflow, and its gradient with it.
    pairs = torch.where(visible[..., None], g[..., :, None, :] - g[..., None, :, :], -torch.inf).exp()
    # What a token still sees of the state before the chunk, and what is left of its own writing at the chunk's end.
    from_start = g.exp() * seen[..., None]
    to_end = (g[..., -1:, :] - g).exp() * kept[..., None]
    if call.beta is None:
        (attention,), u, w = _products(k, pairs, q), v, None
    else:
        # overlaps: k_i . k_j. Row i of the system says what token i writes, given what those before it wrote.
        attention, overlaps = _products(k, pairs, q, k)
        beta = _chunks(call.beta[..., None], size).to(q.dtype)
        # One solve for both right-hand sides: the values, and what the incoming state predicts for each key.
        right = torch.cat([v, k * from_start], dim=-1) * beta
        solved = torch.linalg.solve_triangular(beta * overlaps, right, upper=False, unitriangular=True)
        u, w = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    # Only this part goes from chunk to chunk, one after the other.
    o, state = _scan(q * from_start, attention, u, w, k * to_end, from_start[..., -1, :], call.state)
    o = (o * call.scale).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]
    return o.to(call.v.dtype), None if call.state is None else state


def _scan(
    q: Tensor, attention: Tensor, u: Tensor, w: Tensor | None, k: Tensor, decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The state from chunk to chunk: (o (B, H, N, C, V), final state (B, H, K, V))."""
    state = u.new_zeros(*u.shape[:2], k.shape[-1], u.shape[-1]) if state is None else state.to(u.dtype)
    outputs = []
    for n in range(u.shape[2]):
        # The delta rule writes the error of the state's prediction, and not the value.
        values = u[:, :, n] if w is None else u[:, :, n] - w[:, :, n] @ state
        outputs.append(q[:, :, n] @ state + attention[:, :, n] @ values)
        state = decay[:, :, n, :, None] * state + k[:, :, n].mT @ values
    return torch.stack(outputs, dim=2), state


def _products(k: Tensor, pairs: Tensor, *queries: Tensor) -> Sequence[Tensor]:
    """(..., C, C) each: the products of x_i and k_j, decayed from j to i, for x in queries."""
    if pairs.shape[-1] == 1:  # one decay for all K channels: it is a factor of the product
        return [(x @ k.mT) * pairs[..., 0] for x in queries]
    return ((pairs * k[..., None, :, :]) @ torch.stack(queries, dim=-1)).unbind(-1)


def _four_dimensional(log_decay: Tensor | None, q_BTHK: Tensor) -> Tensor:
    """Any form of decay as (1 or B, T, 1 or H, 1 or K)."""
    if log_decay is None:
        return q_BTHK.new_zeros(1, q_BTHK.shape[1], 1, 1)
    if log_decay.ndim == 1:
        log_decay = log_decay.expand(1, q_BTHK.shape[1], -1)
    return log_decay if log_decay.ndim == 4 else log_decay[..., None]


def _chunks(x_BTHD: Tensor, size: int) -> Tensor:
    """(B, H, N, C, D), zeros at the end of the last chunk: they neither write nor decay."""
    padded = F.pad(x_BTHD, (0, 0, 0, 0, 0, -x_BTHD.shape[1] % size))
    return padded.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def _masks(doc_ids_BT: Tensor | None, length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """visible (B, 1, N, C, C): j is at or before i in its document. seen (B, 1, N, C): i goes on with
    the document before the chunk. kept: i is of the document at the chunk's end.
    """
    if doc_ids_BT is None:
        doc_ids_BT = torch.zeros(1, length, dtype=torch.int32, device=device)
    places = torch.arange(length + -length % size, device=device).clamp(max=length - 1)
    ids = doc_ids_BT[:, places].unflatten(1, (-1, size))[:, None]
    # The document that the chunk before ended in; of the first chunk its own, since a state given belongs to it.
    before = torch.cat([ids[:, :, :1, 0], ids[:, :, :-1, -1]], dim=2)
    visible = (ids[..., :, None] == ids[..., None, :]).tril()
    return visible, ids == before[..., None], ids == ids[..., -1:]


def l2_norm(x: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def by_document(kernel: Callable[..., Any], call: Call, **tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Run one of fla's kernels on (B, T, ...) tensors; with documents on all of them as one row, as it demands.

    Tensors that are None are not handed on: not every kernel has that argument.
    """
    assert (call.doc_ids is None) == (call.cu_seqlens is None), "on CUDA documents come with cu_seqlens"
    rows, length = call.q.shape[:2]
    options = {"scale": call.scale, "output_final_state": call.state is not None}
    given = {name: x for name, x in tensors.items() if x is not None}
    if call.cu_seqlens is None:
        o, final = kernel(**given, **options, initial_state=call.state)
        return o.to(call.v.dtype), final
    # fla reads cu_seqlens only with a batch of one, so rows are laid end to end.
    packed = {name: x.flatten(0, 1)[None] for name, x in given.items()}
    bounds = torch.arange(0, (rows + 1) * length, length, dtype=call.cu_seqlens.dtype, device=call.q.device)
    firsts = torch.searchsorted(call.cu_seqlens, bounds)  # each row's first document, and one past the last row's
    state = call.state
    if state is not None:
        state = state.new_zeros(len(call.cu_seqlens) - 1, *state.shape[1:]).index_copy(0, firsts[:-1], state)
    # Its final states are of all documents; a row's is that of its last one.
    o, final = kernel(**packed, **options, initial_state=state, cu_seqlens=call.cu_seqlens)
    o = o[0].unflatten(0, (rows, length)).to(call.v.dtype)
    return o, None if state is None else final[firsts[1:] - 1]


def library_refuses(request: Request) -> str:
    """Why none of fla's kernels does a request, or ""."""
    if request.device != "cuda":
        return "its kernels run on CUDA devices"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels multiply in half precision, and the inputs are {request.dtype}"
    return missing("fla.ops")


def steps_refuse(request: Request) -> str:
    """Why a kernel that goes token by token does not do a request, or ""."""
    if request.gradients or request.length > STEP_LIMIT:
        return f"it goes token by token: for decoding, at most {STEP_LIMIT} tokens and no gradients"
    return library_refuses(request)


@torch.compiler.assume_constant_result
@functools.cache
def wrong_gradients(tilelang_helps: bool) -> str:
    """Why the gradients of decays per head cannot be computed here, or "".

    fla has a TileLang kernel in place of the miscompiled one for some operations.
    """
    triton = optional("triton").__version__
    version = tuple(int(part) for part in re.findall(r"\d+", triton)[:3])
    if torch.cuda.get_device_capability()[0] != HOPPER or not WRONG_TRITON[0] <= version < WRONG_TRITON[1]:
        return ""
    if tilelang_helps and not missing("tilelang"):
        return ""
    cure = "pip install 'triton>=3.7.1'" + (", or pip install tilelang" if tilelang_helps else "")
    return f"Triton {triton} gives its backward pass wrong gradients on Hopper GPUs ({cure})"
