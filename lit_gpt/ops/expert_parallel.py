"""Experts on other processes: tokens travel to them and back (arXiv:2006.16668), weights stay.

Each process of a group holds some of the experts, in order, and has tokens of its own:

    rows by expert -- all-to-all --> rows of my experts -- experts --> -- all-to-all --> rows by expert

How many rows go where is only known after routing, so each call waits for the host once. Rows that
travelled are kept for backward, K of them per token.

Shapes: W processes, E experts in all, P pairs sorted by expert, R rows that arrive here; the others as in
ops.experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_gpt.ops.experts import Routes, expert_ffn, sort_pairs, sum_rows


@torch.compiler.disable
def parallel_expert_ffn(
    x_TD: Tensor, gates_TK: Tensor, up_EHD: DTensor, down_EDI: DTensor, routes: Routes, **options: Any
) -> Tensor:
    """ops.experts.expert_ffn with weights sharded by expert over the mesh axis "shard". Collective over it.

    options: of expert_ffn.
    Gradients of the weights are sums over the tokens of all its processes.
    """
    group = up_EHD.device_mesh.get_group("shard")
    size, k = dist.get_world_size(group), gates_TK.shape[1]
    sent_WE = _counts(routes.ends_E, size, group)
    share = -(-len(up_EHD) // size)  # FSDP2 shards so: all hold as many, the last ones fewer or none
    first = dist.get_rank(group) * share
    arriving_We = sent_WE[:, first : first + share]
    to = [int(part.sum()) for part in _parts(sent_WE[dist.get_rank(group)], share, size)]
    come = arriving_We.sum(1).tolist()
    rows_RD = _AllToAll.apply(x_TD[routes.order_P // k], to, come, group)
    out_RD = _own(rows_RD, arriving_We, up_EHD.to_local(), down_EDI.to_local(), options)  # type: ignore[arg-type]
    out_PD = _AllToAll.apply(out_RD, come, to, group)
    return sum_rows(out_PD, routes.place_P.view_as(gates_TK), gates_TK).to(x_TD.dtype)  # type: ignore[arg-type]


def _counts(ends_E: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
    """Rows that every process sends to every expert, (W, E), on the host."""
    counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    everyone = [torch.empty_like(counts_E) for _ in range(size)]
    dist.all_gather(everyone, counts_E, group=group)
    return torch.stack(everyone).cpu()


def _parts(counts_E: Tensor, share: int, size: int) -> list[Tensor]:
    """The counts of each process's experts; empty for one without."""
    return [counts_E[i * share : (i + 1) * share] for i in range(size)]


def _own(rows_RD: Tensor, arriving_We: Tensor, up: Tensor, down: Tensor, options: dict[str, Any]) -> Tensor:
    """This process's experts on rows ordered by sender, then by expert; in the same order."""
    experts_R = torch.arange(arriving_We.shape[1]).repeat(len(arriving_We)).repeat_interleave(arriving_We.flatten())
    experts_R1 = experts_R.to(rows_RD.device, non_blocking=True)[:, None]
    ones_R1 = torch.ones_like(rows_RD[:, :1], dtype=torch.promote_types(rows_RD.dtype, torch.float32))
    return expert_ffn(rows_RD, ones_R1, up, down, sort_pairs(experts_R1, len(up)), **options)


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
