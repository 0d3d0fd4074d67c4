"""APOLLO (arXiv:2412.05270): gradients scaled per channel, as Adam in a random low-rank space would scale them.

For a matrix with gradient G (R x C, R <= C, else transposed), P (rank x R) of N(0, 1 / rank) and U = P G:
Adam's direction of U is U', s_j = |U'_j| / |U_j| over columns j, and X <- X - eta sqrt(scale) G diag(s).
The norm of an update is at most `growth` times that of the step before. P is drawn anew every `gap` steps,
from a seed, and not kept. Matrices, experts and routers; AdamW trains the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gpt.optim.engine.external import Entry
from lit_gpt.optim.engine.libraries import Group
from lit_gpt.scaling.optimizer_facts import Args, Kept, OptimizerFacts, Shape, UpdateRule, hidden, taking

ALIASES = ("apollo_adamw",)


class Apollo(torch.optim.Optimizer):
    """Over matrices.

    rank: of the projection. gap: steps between projections. scale_type: one factor per channel, or one per
    tensor. growth: how much larger than the one before an update may be, as a factor on its norm (the limiter of
    Fira, arXiv:2410.01623); 0 sets no limit. Decay is left to the caller. Raises ValueError for values out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int = 256,
        gap: int = 200,
        scale: float = 1.0,
        scale_type: Literal["channel", "tensor"] = "channel",
        growth: float = 1.01,
    ):
        if rank < 1 or gap < 1 or scale_type not in ("channel", "tensor"):
            raise ValueError(f"rank {rank} and gap {gap} must be positive, scale_type {scale_type!r} channel or tensor")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rank, self.gap, self.scale, self.scale_type, self.growth = rank, gap, scale, scale_type, growth
        for seed, p in enumerate(p for group in self.param_groups for p in group["params"]):
            low = torch.zeros(min(rank, *p.shape), max(p.shape), dtype=p.dtype, device=p.device)
            self.state[p] = {"seed": seed, "step": 0, "exp_avg": low, "exp_avg_sq": low.clone()}
            self.state[p]["norm"] = torch.zeros((), dtype=p.dtype, device=p.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                wide = p.shape[0] <= p.shape[1]
                update = self._update(p.grad if wide else p.grad.T, self.state[p], group)
                p.sub_(update if wide else update.T, alpha=group["lr"])

    def _update(self, g_RC: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        u_rC = self._projection(g_RC, state) @ g_RC
        state["step"] += 1
        (beta1, beta2), t = group["betas"], state["step"]
        m = state["exp_avg"].lerp_(u_rC, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(u_rC, u_rC, value=1 - beta2)
        scaled = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        dims = (0,) if self.scale_type == "channel" else (0, 1)
        s = scaled.norm(dim=dims, keepdim=True) / u_rC.norm(dim=dims, keepdim=True).clamp(min=1e-30)
        update = g_RC * s * self.scale**0.5
        if self.growth:
            norm, before = update.norm(), state["norm"]
            limit = torch.where(before > 0, self.growth * before, norm)
            update *= torch.where(norm > limit, limit / norm.clamp(min=1e-30), 1.0)
            state["norm"].copy_(torch.minimum(norm, limit))
        return update

    def _projection(self, g_RC: Tensor, state: dict[str, Any]) -> Tensor:
        """P (rank x R), the same one for `gap` steps and on every process."""
        rank, rows = len(state["exp_avg"]), g_RC.shape[0]
        # A prime far above the number of projections of a run, so that no two parameters ever share a seed.
        seed = 1_000_003 * state["seed"] + state["step"] // self.gap
        generator = torch.Generator(g_RC.device).manual_seed(seed)
        drawn = torch.randn(rank, rows, generator=generator, device=g_RC.device, dtype=g_RC.dtype)
        return drawn / rank**0.5


def memory(shape: Shape, args: Args) -> Kept:
    """Two moments of the projected gradient; the projection itself is drawn again when it is needed."""
    return Kept(2 * min(args.get("rank", 256), *shape) * max(shape))


RULE = UpdateRule("apollo", memory, taking(beta1=None, beta2=None, eps=None))
FACTS = OptimizerFacts(hidden(RULE), gathered=True)
ENTRY = Entry(__name__, "Apollo", "Adam's scales from a random low-rank space", FACTS)
