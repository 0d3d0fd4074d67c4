"""Matrices of one shape, in batches: which rank works on which, and how they get there and back.

Under FSDP2 every rank holds some of the rows of every matrix. Newton-Schulz needs whole matrices, so every
matrix has one owner: the rank that collects its rows, does the work, and sends the rows of the result back.

    u_BrC (this rank's rows of all matrices of the batch)
      -- all-to-all --> u_bRC (all rows of the matrices that this rank owns)
      -- the work, such as Newton-Schulz -->
      -- all-to-all --> u_BrC (this rank's rows of all results)

Here a batch has B matrices of R rows and C columns; this rank holds r of the R rows of each, and owns b of the
B matrices. This is how distributed Muon is done in dion (https://github.com/microsoft/dion).

The matrices are dealt out evenly by cost. FSDP2 may give ranks different numbers of rows, and some ranks none, so
every rank says once how many it holds. Experts (E, R, C) are sharded by expert, so each of their matrices is whole
on one rank already. Kernels of convolutions (R, 1, K) count as matrices of R rows. Under HSDP, where several groups
of ranks hold the same weights, each group does all the work for itself.

The work on a batch is a generator that yields where it waits for the network. `interleave` runs several such
generators, each one stage behind the one before it, so that one batch travels while another one is computed.
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

# Elements of one batch on one rank, those of an 8,192 x 4,096 matrix. That is enough work to keep a GPU busy, and
# little enough that a model has several batches, which can overlap; a temporary in fp32 then takes 128 MiB.
BATCH_ELEMENTS = 2**25


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient(p: Tensor) -> Tensor:
    """This rank's part of a parameter's gradient."""
    assert p.grad is not None, "a parameter has no gradient"
    return local(p.grad)


def interleave(tasks: Iterable[Task[None]]) -> None:
    """Run all tasks to their ends, each one stage (from one `yield` to the next) behind the task before it.

    Stages contain collectives, so the order has to be the same on every rank, as it is here.
    """
    running: list[Task[None]] = []
    for task in tasks:
        running = [t for t in [task, *running] if _goes_on(t)]
    while running:
        running = [t for t in running if _goes_on(t)]


def _goes_on(task: Task[None]) -> bool:
    """Run one stage of a task; whether there is another one."""
    try:
        next(task)
    except StopIteration:
        return False
    return True


@dataclass(frozen=True)
class Batch:
    """Parameters of one shape, whose matrices are worked on together.

    blocks: into how many blocks of rows each matrix is to be cut, each a linear map of its own.
    group: the ranks that share the rows of these matrices; None where every matrix is whole on this rank.
    rank: the place of this rank in the group.
    rows: for every rank of the group, how many rows of each matrix it holds.
    owned: for every rank of the group, how many of the matrices it works on; the first ranks own the first params.
    """

    params: Sequence[Tensor]
    blocks: int = 1
    group: dist.ProcessGroup | None = None
    rank: int = 0
    rows: tuple[int, ...] = ()
    owned: tuple[int, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether each parameter holds several matrices, as experts do."""
        return is_stacked(self.params[0])

    @property
    def device(self) -> torch.device:
        """Where whole matrices are worked on: the device of the mesh, even when the shards lie in host memory."""
        first = self.params[0]
        return torch.device(first.device_mesh.device_type) if isinstance(first, DTensor) else first.device

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """One new tensor (B, r, C), copied from the local parts of `tensors`, which are one per parameter."""
        return torch.cat([_matrices(local(t), self.stacked) for t in tensors])

    def split(self, joined: Tensor, like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Views of a (B, r, C) tensor, one per tensor of `like` (default: the parameters), in its local shape."""
        targets = [local(t) for t in like or self.params]
        parts = joined.split([len(_matrices(t, self.stacked)) for t in targets])
        return [part.view(t.shape) for part, t in zip(parts, targets)]

    def store(self, joined: Tensor, into: Sequence[Tensor]) -> None:
        """The inverse of join: copy a (B, r, C) tensor into the local parts of `into`, one per parameter."""
        torch._foreach_copy_([local(t) for t in into], self.split(joined, into))

    def assemble(self, u_BrC: Tensor) -> Task[Tensor]:
        """From this rank's rows of all matrices, (B, r, C), to the whole matrices that it owns, (b, R, C).

        Collective; waits at one `yield`.
        """
        if self.group is None:
            return u_BrC
        b, columns = self.owned[self.rank], u_BrC.shape[-1]
        sent = [n * self.rows[self.rank] for n in self.owned]
        parts = yield from self._exchange(u_BrC.reshape(-1, columns), sent, [b * r for r in self.rows])
        return torch.cat([part.view(b, r, columns) for part, r in zip(parts, self.rows)], dim=1)

    def scatter(self, u_bRC: Tensor) -> Task[Tensor]:
        """The inverse of assemble: from the whole matrices that this rank owns to its rows of all, (B, r, C)."""
        if self.group is None:
            return u_bRC
        b, columns = self.owned[self.rank], u_bRC.shape[-1]
        buffer = torch.cat([part.reshape(-1, columns) for part in u_bRC.split(self.rows, dim=1)])
        received = [n * self.rows[self.rank] for n in self.owned]
        parts = yield from self._exchange(buffer, [b * r for r in self.rows], received)
        return torch.cat(parts).view(sum(self.owned), self.rows[self.rank], columns)

    def _exchange(self, buffer: Tensor, sent: list[int], received: list[int]) -> Task[list[Tensor]]:
        """Send sent[i] rows of `buffer` to rank i; the rows received[i] that came from it, for every i."""
        arrived = buffer.new_empty(sum(received), buffer.shape[1])
        work: Any = dist.all_to_all_single(arrived, buffer, received, sent, group=self.group, async_op=True)
        yield
        work.wait()
        return list(arrived.split(received))

    def total_(self, values: Tensor) -> Tensor:
        """Add up `values` over the ranks that hold rows of these matrices, in place; returns when that is done."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def norms(self, x_BrC: Tensor) -> Task[Tensor]:
        """Frobenius norms (B,) of the whole matrices, from this rank's rows of them. Collective."""
        squares = torch.linalg.vector_norm(x_BrC, dim=(1, 2)).square()
        if self.group is not None:
            work: Any = dist.all_reduce(squares, group=self.group, async_op=True)
            yield
            work.wait()
        return squares.sqrt()


def make_batches(params: Sequence[Tensor], blocks: Callable[[Tensor], int] = lambda p: 1) -> list[Batch]:
    """Put every parameter into exactly one batch of parameters that are alike; the same batches on every rank.

    Alike are parameters of one shape, one number of blocks and one sharding. blocks: of a parameter, see Batch.
    Collective where parameters are sharded.
    """
    rows = _rows_on_every_rank(params)
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        alike[tuple(p.shape), blocks(p), shard_group(p), rows[p]].append(p)
    found = []
    loads: dict[Any, list[int]] = {}
    for (shape, k, group, held), same in alike.items():
        share = max(same[0].numel() // _shards(same[0]), 1)
        # At least one matrix for each rank of the group, so that no rank is idle.
        count = max(BATCH_ELEMENTS // share, 1 if group is None else len(held))
        for start in range(0, len(same), count):
            chosen = same[start : start + count]
            if group is None:
                found.append(Batch(chosen, k))
            else:
                work = loads.setdefault(group, [0] * len(held))
                # Newton-Schulz on R x C takes products of min(R, C) R C multiplications.
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
    """Parameter -> how many of its rows each rank of its group holds, which the ranks tell; () where it is whole."""
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
    """How many of `count` matrices each rank gets; each goes to the rank with the least work so far.

    loads: the work of every rank, to which this adds `cost` per matrix.
    """
    owned = [0] * len(loads)
    for _ in range(count):
        rank = loads.index(min(loads))
        owned[rank] += 1
        loads[rank] += cost
    return tuple(owned)


def _matrices(x: Tensor, stacked: bool) -> Tensor:
    """A tensor as a batch of matrices.

    Experts (E, R, C) stay as they are; a kernel (R, 1, K) becomes (1, R, K); matrices, vectors and scalars get axes
    of length one in front, (1, R, C), (1, 1, C) and (1, 1, 1).
    """
    if x.ndim == 3 and not stacked:
        return x.flatten(1).unsqueeze(0)
    return x.view((1,) * (3 - x.ndim) + tuple(x.shape))
