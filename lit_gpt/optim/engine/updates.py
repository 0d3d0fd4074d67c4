"""Updates: from weights and a direction to new weights. eta is the group's rate, lambda its decay.

| update | what it does |
|---|---|
| Step | X <- (1 - eta lambda) X - eta f D, f by the shape: Muon, NAdam, Lion |
| NormalizedRows | the same with each row of D divided by its running root mean square: NorMuon |
| Sphere | as far as eta times the Frobenius norm, which is kept at its initial value: MuonH |
| Ball | X <- X - eta R D, then scaled to the spectral norm R = sqrt(fan_out / fan_in): MuonBall |

Shapes are those of matrix_batches.py. A rate of 0 (also that of a skipped step) changes no weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.optim.engine.directions import buffers
from lit_gpt.optim.engine.matrix_batches import Batch, Task, local, shard_group
from lit_gpt.optim.engine.role_optimizer import Control, Group, State

EPS = 1e-8  # smallest norm that is divided by: a direction of zeros must give a step of zeros, not NaN
# Power iterations per step. Each step goes on from the vector of the step before, and weights turn little within one
# step, so few are enough.
POWER_STEPS = 10


def adjusted(mode: str, rows: int, columns: int) -> float:
    """The factor on an orthogonal direction of rows x columns (fan_out x fan_in).

    spectral: sqrt(rows / columns), with which a step changes outputs of unit RMS by as much at any width
    (arXiv:2310.17813). clip: the same, but not below 1. rms: 0.2 sqrt(max(rows, columns)), which makes the entries
    as large as those of AdamW's steps (arXiv:2502.16982). none: 1. Raises UserError for another mode.
    """
    factors = {
        "spectral": sqrt(rows / columns),
        "clip": sqrt(max(rows / columns, 1.0)),
        "rms": 0.2 * sqrt(max(rows, columns)),
        "none": 1.0,
    }
    if mode not in factors:
        raise UserError(f"--optimizer_args.adjust {mode} is unknown. Use one of {', '.join(factors)}.")
    return factors[mode]


def decay_(x_BrC: Tensor, d_BrC: Tensor, shrink: Tensor, cautious: bool) -> None:
    """Shrink the weights; under cautious decay (arXiv:2510.12402) only those that the direction shrinks too."""
    x_BrC.sub_(x_BrC * shrink * (x_BrC * d_BrC >= 0)) if cautious else x_BrC.mul_(1 - shrink)


def _fan(batch: Batch) -> tuple[int, int]:
    """(fan_out, fan_in) of each map in a batch."""
    rows, columns = batch.params[0].shape[-2:]
    return rows // batch.blocks, columns


@dataclass(frozen=True)
class Step:
    """X <- (1 - eta lambda) X - eta f D. adjust: f, see `adjusted`; None is 1 for any shape."""

    cautious: bool = False
    adjust: str | None = None

    def __post_init__(self) -> None:
        if self.adjust is not None:
            adjusted(self.adjust, 1, 1)

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """There is no state."""
        return {}

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]:
        """See role_optimizer.Update."""
        factor = 1.0 if self.adjust is None else adjusted(self.adjust, *_fan(batch))
        decay_(x_BrC, d_BrC, control.rate(group["lr"] * group["weight_decay"]), self.cautious)
        x_BrC.sub_(d_BrC.mul_(control.rate(group["lr"] * factor)))
        yield from ()


@dataclass(frozen=True)
class NormalizedRows:
    """NorMuon (arXiv:2510.05491): rows over their running RMS, at the Frobenius norm of an orthogonal D.

    With D orthogonal, v <- beta2 v + (1 - beta2) mean of D^2 over columns, D' = D / (sqrt(v) + eps) and
    X <- (1 - eta lambda) X - eta f sqrt(min(R, C)) D' / |D'|. The paper's f is that of "rms".
    of: "longer" has v of the columns of matrices that are wider than high, so that it is always a mean over the
    shorter side.
    """

    beta2: float = 0.95
    cautious: bool = False
    adjust: str = "spectral"
    of: Literal["rows", "longer"] = "rows"

    def __post_init__(self) -> None:
        adjusted(self.adjust, 1, 1)

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Running mean squares of the rows, (R, 1) or (E, R, 1), sharded like the rows.

        Or of the columns, (C,), the same on every rank, or (E, 1, C) for experts, sharded like them.
        """
        if not self._of_columns(p):
            return {"row_square": torch.zeros_like(p.detach()[..., :1])}
        if p.ndim == 3:
            return {"column_square": torch.zeros_like(p.detach()[:, :1, :])}
        return {"column_square": torch.zeros(p.shape[-1], device=p.device)}

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]:
        """See role_optimizer.Update."""
        first = batch.params[0]
        of_columns = self._of_columns(first)
        squares = [state[p]["column_square" if of_columns else "row_square"] for p in batch.params]
        if of_columns:
            mean = batch.total_(d_BrC.square().sum(-2, keepdim=True)).div_(first.shape[-2])
        else:
            mean = d_BrC.square().mean(-1, keepdim=True)
        v = batch.join(squares).mul_(control.decay(self.beta2))  # (B, r, 1) or (B, 1, C)
        v.add_(mean * control.rate(1 - self.beta2))
        batch.store(v, squares)
        d_BrC = d_BrC / (v.sqrt() + EPS)
        norms = yield from batch.norms(d_BrC)
        rows, columns = _fan(batch)
        length = adjusted(self.adjust, rows, columns) * sqrt(batch.blocks * min(rows, columns))
        decay_(x_BrC, d_BrC, control.rate(group["lr"] * group["weight_decay"]), self.cautious)
        x_BrC.sub_(d_BrC.mul_((control.rate(group["lr"] * length) / norms.clamp(min=EPS))[:, None, None]))

    def _of_columns(self, p: Tensor) -> bool:
        return self.of == "longer" and p.shape[-2] < p.shape[-1]


@dataclass(frozen=True)
class Sphere:
    """Hyperball (arXiv:2603.28743): eta is the step's length relative to the weights' norm.

    With nu the Frobenius norm at the start of training, X' = X - eta nu D / |D| and X <- nu X' / |X'|.
    Every expert is a matrix on a sphere of its own, whatever the number of processes (departure D49). A matrix that
    has blocks is on one sphere as a whole.
    """

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The norm: one number, or (E, 1, 1) for experts, sharded like them."""
        squares = torch.linalg.vector_norm(local(p).detach(), dim=(-2, -1), keepdim=p.ndim == 3).square()
        if p.ndim == 3:
            norm = torch.zeros_like(p.detach()[:, :1, :1])
            local(norm).copy_(squares.sqrt())
            return {"norm": norm}
        if (group := shard_group(p)) is not None:
            dist.all_reduce(squares, group=group)
        return {"norm": squares.sqrt()}

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]:
        """See role_optimizer.Update."""
        rate, nu_B = control.rate(group["lr"]), torch.cat([n.reshape(-1) for n in buffers(batch, state, "norm")])
        lengths = yield from batch.norms(d_BrC)
        x_BrC.sub_(d_BrC.mul_((rate * nu_B / lengths.clamp(min=EPS))[:, None, None]))
        norms = yield from batch.norms(x_BrC)
        x_BrC.mul_(torch.where(rate == 0, 1.0, nu_B / norms.clamp(min=EPS))[:, None, None])


@dataclass(frozen=True)
class Ball:
    """Spectral ball: weights keep the spectral norm R = sqrt(fan_out / fan_in).

    X' = X - eta R D, then X <- R X' / sigma(X'). ArchScale's MuonBall scales the weights before a step; here it is
    after it, so that the weights that are evaluated and saved have that norm (departure D52). The spectral norm
    sigma comes from power iterations on X'^T X', each with one small all-reduce, that go on from their last vector.
    """

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The vector: (C,), the same on every rank, or (E, 1, C) for experts, sharded like them."""
        if p.ndim == 3:
            return {"singular_vector": torch.zeros_like(p.detach()[:, :1, :]).fill_(p.shape[-1] ** -0.5)}
        return {"singular_vector": torch.full((p.shape[-1],), p.shape[-1] ** -0.5, device=p.device)}

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]:
        """See role_optimizer.Update."""
        radius = adjusted("spectral", *batch.params[0].shape[-2:])
        rate, vectors = control.rate(group["lr"]), [state[p]["singular_vector"] for p in batch.params]
        x_BrC.sub_(d_BrC.mul_(rate * radius))
        v_B1C = before = batch.join(vectors)
        sigma_B = v_B1C.new_ones(len(v_B1C))
        for _ in range(POWER_STEPS):
            w_B1C = batch.total_(v_B1C @ x_BrC.mT @ x_BrC)
            sigma_B = torch.linalg.vector_norm(w_B1C, dim=(1, 2))
            # There is no smallest norm: weights that start at zero are as short as their first step. Zero stays zero.
            v_B1C = torch.where(sigma_B[:, None, None] > 0, w_B1C / sigma_B[:, None, None], v_B1C)
        batch.store(torch.where(control.skip, before, v_B1C), vectors)
        factor_B = torch.where((rate == 0) | (sigma_B == 0), 1.0, radius / sigma_B.sqrt())
        x_BrC.mul_(factor_B[:, None, None])
        yield from ()
