"""The linear recurrences token by token, and inputs for them; shared by their tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton_on_cpu  # noqa: F401  before lit_gpt: its imports end in Triton, which then would not be interpreted
from torch import Tensor

from lit_gpt.ops import linear_recurrence
from lit_gpt.ops.linear_recurrence import Call, Request

BATCH, HEADS, KEY, VALUE = 2, 3, 4, 5
DOCUMENTS = ((3, 40, 37), (64, 1, 15))  # lengths in each row of 80 tokens: inside, across and at the ends of chunks
LENGTH = 80


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def qkv(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    dims = (KEY, KEY, VALUE)
    return [normal(BATCH, length, HEADS, d, seed=i, dtype=dtype) for i, d in enumerate(dims)]


def log_decay(form: str, length: int = LENGTH, strength: float = 1.0, dtype: torch.dtype = torch.float64):
    """A decay of one of the forms that the operations take; strength: its typical size per token."""
    shapes = {"constant": (HEADS,), "head": (BATCH, length, HEADS), "channel": (BATCH, length, HEADS, KEY)}
    return None if form == "none" else -strength * normal(*shapes[form], seed=9, dtype=dtype).exp()


def ids() -> Tensor:
    """(B, T) document ids of DOCUMENTS."""
    rows = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in DOCUMENTS]
    return torch.stack(rows)


def at(decay: Tensor | None, t: int) -> Tensor:
    """The factors on the state (B, H, K, V) at token t."""
    if decay is None:
        return torch.ones(())
    decay = decay[None] if decay.ndim == 1 else decay[:, t]
    return decay.exp()[..., None] if decay.ndim == 3 else decay.exp()[..., None, None]


def recurrence(q, k, v, decay, scale, beta=None, state=None) -> tuple[Tensor, Tensor]:
    """The definition: o (B, T, H, V) and the final state (B, H, K, V)."""
    state = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for t in range(q.shape[1]):
        state = at(decay, t) * state
        value = v[:, t]
        if beta is not None:
            predicted = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
            value = beta[:, t, :, None] * (value - predicted)
        state = state + k[:, t, :, :, None] * value[:, :, None]
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1), state


def separately(run, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """run(*tensors) on each of DOCUMENTS alone: outputs joined as in the packed rows, and each row's last state."""
    outputs, states = [], []
    for b, row in enumerate(DOCUMENTS):
        parts = [run(*(x if x.ndim == 1 else x[b : b + 1, e - n : e] for x in tensors)) for n, e in bounds(row)]
        outputs.append(torch.cat([o for o, _ in parts], dim=1))
        states.append(parts[-1][1])
    return torch.cat(outputs), torch.cat(states)


def bounds(row: tuple[int, ...]) -> list[tuple[int, int]]:
    """(length, end) of each document of a row."""
    return [(n, sum(row[: i + 1])) for i, n in enumerate(row)]


def offsets() -> Tensor:
    """Where DOCUMENTS start in the tokens of both rows, and the number of tokens, as Context.cu_seqlens."""
    starts = [b * LENGTH + end - n for b, row in enumerate(DOCUMENTS) for n, end in bounds(row)]
    return torch.tensor([*starts, BATCH * LENGTH], dtype=torch.int32)


def library_kernel(
    q, k, v, beta=None, g=None, g_gamma=None, gk=None, *, scale, initial_state, output_final_state, cu_seqlens=None,
    use_qk_l2norm_in_kernel=False,
):  # fmt: skip
    """What fla's kernels compute: B rows, or documents in one row; a final state of each."""
    decay = next((d for d in (g, g_gamma, gk) if d is not None), None)
    if use_qk_l2norm_in_kernel:
        q, k = normalized(q), normalized(k)
    spans = [(b, 0, q.shape[1]) for b in range(len(q))]
    if cu_seqlens is not None:
        assert len(q) == 1
        spans = [(0, s, e) for s, e in itertools.pairwise(cu_seqlens.tolist())]
    results = []
    for n, (b, s, e) in enumerate(spans):
        parts = [x if x is None or x.ndim == 1 else x[b : b + 1, s:e] for x in (q, k, v, decay, beta)]
        state = None if initial_state is None else initial_state[n : n + 1]
        results.append(recurrence(*parts[:4], scale, parts[4], state))
    o = torch.cat([o for o, _ in results], dim=0 if cu_seqlens is None else 1)
    return o, torch.cat([s for _, s in results]) if output_final_state else None


def normalized(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def check_call(ops: ModuleType, row: str, kernels: Iterable[str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row gives its library what it wants: with these kernels written out in Python, it agrees with plain torch."""
    library = SimpleNamespace(**dict.fromkeys(kernels, library_kernel))
    monkeypatch.setattr(ops, "optional", lambda name: library)
    torch.testing.assert_close(ops.BACKENDS[row].run(call), ops.BACKENDS["plain"].run(call))
    o, state = ops.BACKENDS[row].run(call._replace(state=None))
    torch.testing.assert_close(o, ops.BACKENDS["plain"].run(call._replace(state=None))[0])
    assert state is None


def chosen(ops: ModuleType, request: Request, monkeypatch: pytest.MonkeyPatch, wrong_gradients: str = "") -> str:
    """The row of an operation's table that does a request where every library is installed."""
    monkeypatch.setattr(linear_recurrence, "missing", lambda name: "")
    monkeypatch.setattr(ops, "wrong_gradients", lambda **_: wrong_gradients)
    return next(name for name, row in ops.BACKENDS.items() if not row.refuses(request))
