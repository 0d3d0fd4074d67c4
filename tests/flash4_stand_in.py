"""Plain torch in the place of FlashAttention 4's two passes, with the arguments and demands of flash-attn-4 4.0.0b36.

Written from what its documentation says that they compute: backward has the softmax from its divisors' logarithms, and
the rest from the output (FlashAttention-2, arXiv:2307.08691, algorithm 2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lit_gpt.ops import attention, flash, flash4


def documents(x: Tensor, offsets: Tensor | None) -> Iterator[slice]:
    """Of the tokens of a row, or of all rows end to end."""
    if offsets is None:
        return iter([slice(None)])
    assert offsets.dtype == torch.int32 and offsets.is_contiguous() and x.ndim == 3 and int(offsets[-1]) == len(x)
    return itertools.starmap(slice, itertools.pairwise(offsets.tolist()))


def logits(q: Tensor, k: Tensor, scale: float, left: int | None) -> Tensor:
    """(H, Q, K), -inf where a query does not see a key; the last query sees the last key."""
    distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    hidden = (distance < 0) | (distance > (len(k) if left is None else left))
    return (scale * torch.einsum("qhd,khd->hqk", q, k)).masked_fill(hidden, -torch.inf)


def checked(*tensors: Tensor) -> None:
    """What kernels read, they read in strides: what would be copied here is a fault of the caller."""
    assert all(t.stride(-1) == 1 and not any(n * t.itemsize % 16 for n in t.stride()[:-1]) for t in tensors)


class Interface:
    """flash_attn.cute.interface. calls: how often each pass ran, and what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []

    def _flash_attn_fwd(
        self, q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        *, softmax_scale, causal, window_size_left, window_size_right, out, lse,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert causal and window_size_right == (None if window_size_left is None else 0)
        checked(q, k, v, out)
        self.calls.append(("forward", False))
        heads = q.shape[-2] // k.shape[-2]
        k, v = (x.repeat_interleave(heads, -2) for x in (k, v))
        rows = [(q, k, v, out, lse)] if cu_seqlens_q is not None else zip(q, k, v, out, lse)
        for q, k, v, out, lse in rows:
            for part in documents(q, cu_seqlens_q):
                scores = logits(q[part], k[part], softmax_scale, window_size_left)
                lse[:, part] = scores.logsumexp(-1)
                out[part] = torch.einsum("hqk,khv->qhv", scores.softmax(-1), v[part])
        return out, lse, None, None, None

    def _flash_attn_bwd(
        self, q, k, v, out, dout, lse, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        *, softmax_scale, causal, window_size_left, window_size_right, deterministic, dq, dk, dv,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert causal and window_size_right == (None if window_size_left is None else 0)
        checked(q, k, v, out, dq, dk, dv)
        self.calls.append(("backward", deterministic))
        groups, heads = k.shape[-2], q.shape[-2] // k.shape[-2]
        k, v = (x.repeat_interleave(heads, -2) for x in (k, v))
        tensors = q, k, v, out, dout, lse, dq, dk, dv
        for q, k, v, out, dout, lse, dq, dk, dv in [tensors] if cu_seqlens_q is not None else zip(*tensors):
            for part in documents(q, cu_seqlens_q):
                weights = (logits(q[part], k[part], softmax_scale, window_size_left) - lse[:, part, None]).exp()
                sums = (out[part] * dout[part]).sum(-1).t()[..., None]
                dscores = softmax_scale * weights * (torch.einsum("qhv,khv->hqk", dout[part], v[part]) - sums)
                dq[part] = torch.einsum("hqk,khd->qhd", dscores, k[part])
                for into, of_pairs, of_queries in ((dk, dscores, q), (dv, weights, dout)):
                    of_heads = torch.einsum("hqk,qhd->khd", of_pairs, of_queries[part])
                    into[part] = of_heads.unflatten(1, (groups, heads)).sum(2)
        return dq, dk, dv


def install(monkeypatch: Any) -> Interface:
    """Have fa4's row run the stand-in, on a CPU as on a GPU."""
    interface = Interface()
    monkeypatch.setattr(flash4, "optional", lambda module: SimpleNamespace(interface=interface))
    row = attention.BACKENDS["fa4"]._replace(refuses=lambda request: "")
    monkeypatch.setitem(attention.BACKENDS, "fa4", row)
    assert row.kernel.__wrapped__ is flash.fa4  # type: ignore[attr-defined]
    return interface
