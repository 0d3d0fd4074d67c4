"""Matrices of one shape, in batches: which rank works on which, and how they get there and back.

Under FSDP2 a rank holds some rows of every matrix; what needs whole matrices (Newton-Schulz)
is done by one owner each:

    u_BrC (my rows of all) -- all-to-all --> u_bRC (all rows of mine) -- work -- all-to-all --> u_BrC

Owners are spread evenly, and nothing is assumed about shards: each rank says once how many rows
it holds (none, for some). Experts (E, R, C) are sharded by expert, so they are whole already. Kernels of
convolutions (R, 1, K) are matrices of R rows.
Under HSDP each group of ranks that shards the weights does all the work.

Work is written as generators that yield where they wait for the network; `interleave` runs
several of them shifted by one stage, so that one batch travels while another is computed.

B matrices of a batch, b of them owned here, R x C whole, r of the R rows held here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

T = TypeVar("T")
Task = Generator[None, None, T]

# Elements of one batch per rank: enough to keep a GPU busy (an 8,192 x 4,096 matrix), few enough
# that a model has several batches, so that they overlap, and temporaries of some 100 MB each.
BATCH_ELEMENTS = 2**25


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def interleave(tasks: Iterable[Task[None]]) -> None:
    """Run all tasks; each starts one stage after the one before it, on every rank in the same order."""
    running: list[Task[None]] = []
    for task in tasks:
        running = [t for t in [task, *running] if _goes_on(t)]
    while running:
        running = [t for t in running if _goes_on(t)]


def _goes_on(task: Task[None]) -> bool:
    try:
        next(task)
    except StopIteration:
        return False
    return True


@dataclass(frozen=True)
class Batch:
    """Parameters whose matrices are worked on together.

    blocks: row blocks of each matrix that are maps of their own. group: the ranks that hold their
    rows, None where every matrix is whole here. rank: this rank's place in it. rows: how many rows
    of each matrix every rank of the group holds. owned: how many of the matrices every rank
    works on, in the order of params.
    """

    params: Sequence[Tensor]
    blocks: int = 1
    group: dist.ProcessGroup | None = None
    rank: int = 0
    rows: tuple[int, ...] = ()
    owned: tuple[int, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether each parameter holds several matrices."""
        return is_stacked(self.params[0])

    @property
    def device(self) -> torch.device:
        """Where whole matrices are worked on: that of the mesh, also for shards in host memory."""
        first = self.params[0]
        return torch.device(first.device_mesh.device_type) if isinstance(first, DTensor) else first.device

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """A copy of the local parts of one tensor per parameter, (B, r, C)."""
        return torch.cat([_matrices(local(t), self.stacked) for t in tensors])

    def split(self, joined: Tensor, like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Views of a (B, ...) tensor in the local shapes of `like` (default: of the parameters)."""
        targets = [local(t) for t in like or self.params]
        parts = joined.split([len(_matrices(t, self.stacked)) for t in targets])
        return [part.view(t.shape) for part, t in zip(parts, targets)]

    def store(self, joined: Tensor, into: Sequence[Tensor]) -> None:
        """The inverse of join: copy into one tensor per parameter."""
        torch._foreach_copy_([local(t) for t in into], self.split(joined, into))

    def assemble(self, u_BrC: Tensor) -> Task[Tensor]:
        """The whole matrices that this rank owns, (b, R, C)."""
        if self.group is None:
            return u_BrC
        b, columns = self.owned[self.rank], u_BrC.shape[-1]
        sent = [n * self.rows[self.rank] for n in self.owned]
        parts = yield from self._exchange(u_BrC.reshape(-1, columns), sent, [b * r for r in self.rows])
        return torch.cat([part.view(b, r, columns) for part, r in zip(parts, self.rows)], dim=1)

    def scatter(self, u_bRC: Tensor) -> Task[Tensor]:
        """The inverse of assemble: this rank's rows of all matrices, (B, r, C)."""
        if self.group is None:
            return u_bRC
        b, columns = self.owned[self.rank], u_bRC.shape[-1]
        buffer = torch.cat([part.reshape(-1, columns) for part in u_bRC.split(self.rows, dim=1)])
        received = [n * self.rows[self.rank] for n in self.owned]
        parts = yield from self._exchange(buffer, [b * r for r in self.rows], received)
        return torch.cat(parts).view(sum(self.owned), self.rows[self.rank], columns)

    def _exchange(self, buffer: Tensor, sent: list[int], received: list[int]) -> Task[list[Tensor]]:
        """All-to-all of rows; what came from each rank."""
        arrived = buffer.new_empty(sum(received), buffer.shape[1])
        work: Any = dist.all_to_all_single(arrived, buffer, received, sent, group=self.group, async_op=True)
        yield
        work.wait()
        return list(arrived.split(received))

    def total_(self, values: Tensor) -> Tensor:
        """The sum over the ranks that hold rows of these matrices, in place, waited for."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def norms(self, x_BrC: Tensor) -> Task[Tensor]:
        """Frobenius norms of the whole matrices, (B,)."""
        squares = torch.linalg.vector_norm(x_BrC, dim=(1, 2)).square()
        if self.group is not None:
            work: Any = dist.all_reduce(squares, group=self.group, async_op=True)
            yield
            work.wait()
        return squares.sqrt()


def make_batches(params: Sequence[Tensor], blocks: Callable[[Tensor], int] = lambda p: 1) -> list[Batch]:
    """Batches of equal shapes over all params, each in exactly one; the same ones on every rank.

    blocks: of a parameter, see Batch. Collective where params are sharded.
    """
    rows = _rows_on_every_rank(params)
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        alike[tuple(p.shape), blocks(p), shard_group(p), rows[p]].append(p)
    found = []
    loads: dict[Any, list[int]] = {}
    for (shape, k, group, held), same in alike.items():
        share = max(same[0].numel() // _shards(same[0]), 1)
        count = max(BATCH_ELEMENTS // share, 1 if group is None else len(held))
        for start in range(0, len(same), count):
            chosen = same[start : start + count]
            if group is None:
                found.append(Batch(chosen, k))
            else:
                work = loads.setdefault(group, [0] * len(held))
                owned = _owners(len(chosen), work, min(shape) * same[0].numel())
                found.append(Batch(chosen, k, group, dist.get_rank(group), held, owned))
    return found


def is_stacked(p: Tensor) -> bool:
    """Whether a parameter is experts, (E, R, C); a kernel of a convolution has three axes too."""
    return p.ndim == 3 and getattr(p, "role", "expert") != "conv"


def shard_group(p: Tensor) -> dist.ProcessGroup | None:
    """The ranks over which the rows of a parameter are spread; None for whole matrices."""
    if not isinstance(p, DTensor) or is_stacked(p) or _shards(p) == 1:
        return None
    return p.device_mesh.get_group(p.placements.index(Shard(0)))


def _shards(p: Tensor) -> int:
    """Number of ranks that share a parameter."""
    if not isinstance(p, DTensor):
        return 1
    sharded = [placement for placement in p.placements if placement.is_shard()]
    assert sharded == [Shard(0)], f"weights are sharded by rows over one axis of the mesh, not as {p.placements}"
    return p.device_mesh.size(p.placements.index(Shard(0)))


def _rows_on_every_rank(params: Sequence[Tensor]) -> dict[Tensor, tuple[int, ...]]:
    """Rows of each parameter on each rank of its group, as those ranks say; () where it is whole."""
    rows: dict[Tensor, tuple[int, ...]] = dict.fromkeys(params, ())
    by_group: dict[dist.ProcessGroup, list[DTensor]] = defaultdict(list)
    for p in params:
        if (group := shard_group(p)) is not None:
            by_group[group].append(p)  # type: ignore[arg-type]
    for group, sharded in by_group.items():
        mine = torch.tensor([local(p).shape[0] for p in sharded], device=sharded[0].device_mesh.device_type)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, mine, group=group)
        rows |= {p: tuple(column) for p, column in zip(sharded, torch.stack(everyone, 1).tolist())}
    return rows


def _owners(count: int, loads: list[int], cost: int) -> tuple[int, ...]:
    """Deal `count` matrices to the ranks with the least work so far; adds to the loads."""
    owned = [0] * len(loads)
    for _ in range(count):
        rank = loads.index(min(loads))
        owned[rank] += 1
        loads[rank] += cost
    return tuple(owned)


def _matrices(x: Tensor, stacked: bool) -> Tensor:
    """As a batch of matrices: stacked (E, R, C) as it is, (R, 1, K) as (1, R, K), less with axes of one before."""
    if x.ndim == 3 and not stacked:
        return x.flatten(1).unsqueeze(0)
    return x.view((1,) * (3 - x.ndim) + tuple(x.shape))
