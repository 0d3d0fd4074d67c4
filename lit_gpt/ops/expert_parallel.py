"""Experts on other processes: tokens travel to them and back (arXiv:2006.16668), weights stay.

Each process of a group holds some of the experts, in order, and has tokens of its own:

    rows by expert -- all-to-all --> rows of my experts -- experts --> -- all-to-all --> rows by expert

How many rows go where is only known after routing, so each call waits for the host once. Beyond what experts keep
where they are, backward keeps the rows that arrived here and those that came back, both in x's dtype.

Shapes: W processes, E experts in all, P pairs sorted by expert, R rows that arrive here; the others as in
ops.experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.experts import Routes, expert_ffn, operation, sort_pairs, sum_rows


@torch.compiler.disable
def parallel_expert_ffn(
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: DTensor,
    down_EDI: DTensor,
    routes: Routes,
    *,
    ffn: Callable[..., Tensor] = expert_ffn,
    **options: Any,
) -> Tensor:
    """ops.experts.expert_ffn with weights sharded by expert over the mesh axis "shard". Collective over it.

    ffn: what computes experts that are at hand. options: of it; whether a compiler is at work is not seen here, so
    compiled says it. Gradients of the weights are sums over the tokens of all its processes.
    """
    group = up_EHD.device_mesh.get_group("shard")
    size = dist.get_world_size(group)
    sent_WE = _counts(routes.ends_E, size, group)
    share = -(-len(up_EHD) // size)  # FSDP2 shards so: all hold as many, the last ones fewer or none
    first = dist.get_rank(group) * share
    # Row w: what process w sends to my experts. Its sums say how many rows come from w.
    arriving_We = sent_WE[:, first : first + share]
    to = [int(part.sum()) for part in _parts(sent_WE[dist.get_rank(group)], share, size)]
    come = arriving_We.sum(1).tolist()
    place_TK, compiled = routes.place_P.view_as(gates_TK), options.get("compiled", False)
    rows_PD = _Gather.apply(x_TD, routes.order_P, place_TK, compiled)
    rows_RD = _AllToAll.apply(rows_PD, to, come, group)
    out_RD = _own(rows_RD, arriving_We, up_EHD.to_local(), down_EDI.to_local(), partial(ffn, **options))
    out_PD = _AllToAll.apply(out_RD, come, to, group)
    return _Combine.apply(out_PD, gates_TK, routes.order_P, place_TK, compiled)  # type: ignore[return-value]


def _counts(ends_E: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
    """Rows that every process sends to every expert, (W, E), on the host."""
    counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    everyone = [torch.empty_like(counts_E) for _ in range(size)]
    dist.all_gather(everyone, counts_E, group=group)
    return torch.stack(everyone).cpu()  # the one wait: all-to-all wants the sizes of its pieces on the host


def _parts(counts_E: Tensor, share: int, size: int) -> list[Tensor]:
    """The counts of each process's experts; empty for one without."""
    return [counts_E[i * share : (i + 1) * share] for i in range(size)]


def _own(rows_RD: Tensor, arriving_We: Tensor, up: Tensor, down: Tensor, ffn: Callable[..., Tensor]) -> Tensor:
    """This process's experts on rows ordered by sender, then by expert; in the same order."""
    # Rows arrive ordered by sender; the experts want them by expert, so they are sorted once more.
    experts_R = torch.arange(arriving_We.shape[1]).repeat(len(arriving_We)).repeat_interleave(arriving_We.flatten())
    experts_R1 = experts_R.to(rows_RD.device, non_blocking=True)[:, None]
    # Gates of 1: the process that a token came from weighs what comes back, so gates need not travel.
    ones_R1 = upcast(rows_RD.new_ones(1, 1)).expand(len(rows_RD), 1)
    return ffn(rows_RD, ones_R1, up, down, sort_pairs(experts_R1, len(up)))


def _sum(rows_PD: Tensor, place_TK: Tensor, gates_TK: Tensor | None) -> Tensor:
    return sum_rows(rows_PD, place_TK, gates_TK).to(rows_PD.dtype)


def _sum_backward(
    dy_TD: Tensor, rows_PD: Tensor, gates_TK: Tensor, order_P: Tensor, place_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of rows and gates, computed in at least fp32."""
    dy_PD = upcast(dy_TD[order_P // gates_TK.shape[1]])
    d_rows_PD = gates_TK.flatten()[order_P][:, None] * dy_PD
    d_gates_P = (dy_PD * upcast(rows_PD)).sum(-1)
    return d_rows_PD.to(rows_PD.dtype), d_gates_P[place_TK].to(gates_TK.dtype)


_sum_op = operation("lit_gpt::sum_rows", _sum)
_sum_backward_op = operation("lit_gpt::sum_rows_backward", _sum_backward)


class _Gather(torch.autograd.Function):
    """A token's row for each of its pairs. Backward keeps places, and sums a token's rows in at least fp32."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_P: Tensor, place_TK: Tensor, compiled: bool) -> Tensor:
        ctx.save_for_backward(place_TK)
        ctx.compiled = compiled
        return x_TD[order_P // place_TK.shape[1]]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Any] = _sum_op if ctx.compiled else _sum
        return run(*grads, *ctx.saved_tensors, None), None, None, None


class _Combine(torch.autograd.Function):
    """y_t = sum_j gates_tj rows[place_tj], in rows' dtype. Backward keeps its inputs, and no row in another dtype."""

    @staticmethod
    def forward(
        ctx: Any, rows_PD: Tensor, gates_TK: Tensor, order_P: Tensor, place_TK: Tensor, compiled: bool
    ) -> Tensor:
        ctx.save_for_backward(rows_PD, gates_TK, order_P, place_TK)
        ctx.compiled = compiled
        return (_sum_op if compiled else _sum)(rows_PD, place_TK, gates_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Any] = _sum_backward_op if ctx.compiled else _sum_backward
        return *run(*grads, *ctx.saved_tensors), None, None, None


class _AllToAll(torch.autograd.Function):
    """Rows to every process: to[i] of them to process i, come[i] from it. Backward sends gradients home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, to: list[int], come: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.to, ctx.come, ctx.group = to, come, group
        return _exchange(rows, to, come, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(grads[0], ctx.come, ctx.to, ctx.group), None, None, None


def _exchange(rows: Tensor, to: list[int], come: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(come), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), come, to, group=group)
    return arrived
