"""Sophia-G (arXiv:2305.14342): momentum over a diagonal curvature, clipped to one.

W <- (1 - eta lambda) W - eta clip(m / (rho B h + 1e-15), -1, 1), with h a moving average of g^2 and g the
gradient of the mean loss over B tokens whose labels the model drew: B g^2 estimates the diagonal of the
Gauss-Newton matrix. The loop makes g every `period` steps (optim/engine/protocol.py, train/curvature.py), first
after the first step, which is the momentum's sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_gpt.optim.engine.directions import buffers
from lit_gpt.optim.engine.matrix_batches import Batch, Task, local
from lit_gpt.optim.engine.role_optimizer import Control, Group, RoleOptimizer, Rule, State
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere, taking

ALIASES = ("sophia_g",)
EPS = 1e-15  # of the paper's code
FACTS = OptimizerFacts(everywhere(UpdateRule("sophia", copies(2), taking(beta1=None, beta2=None, eps=EPS))))


@dataclass(frozen=True)
class ClippedNewton:
    """clip(m / (rho B h), -1, 1); the state "curvature" is B h.

    rho: weight of the curvature; with a smaller one more entries are clipped. period: steps between two estimates of
    the curvature, which the training loop makes.
    """

    rho: float
    period: int

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Momentum, curvature, and the number of steps since the start."""
        state = {"exp_avg": torch.zeros_like(p), "curvature": torch.zeros_like(p)}
        return state | {"step": torch.zeros((), dtype=torch.int64)}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, momenta, (beta1, _) = control.gradients(batch), buffers(batch, state, "exp_avg"), group["betas"]
        torch._foreach_mul_(momenta, control.decay(beta1))
        torch._foreach_add_(momenta, batch.split(g_BrC), alpha=1 - beta1)
        h_BrC = batch.join(buffers(batch, state, "curvature"))
        return batch.join(momenta).div_(h_BrC.mul_(self.rho).add_(EPS)).clamp_(-1, 1)


class Sophia(RoleOptimizer):
    """A RoleOptimizer with the curvature of protocol.py."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        super().step()
        for state in self.state.values():
            state["step"] += 1

    def curvature_due(self) -> bool:
        """After the first step, and every `period` steps from there."""
        steps = next(iter(self.state.values()))["step"].item()
        period = self.rules[0].direction.period
        return steps % period == 1 % period

    @torch.no_grad()
    def update_curvature(self, samples: int) -> None:
        """B h <- beta2 B h + (1 - beta2) samples g^2, with g the gradients that the parameters have now.

        samples: the number of tokens B. An estimate that is not finite counts as 0.
        """
        for group in self.param_groups:
            beta2 = group["betas"][1]
            for p in group["params"]:
                h, g = local(self.state[p]["curvature"]), local(p.grad)
                estimate = (g.square() * samples).nan_to_num_(0.0, 0.0)
                h.mul_(beta2).add_(estimate, alpha=1 - beta2)


def build(groups: list[dict[str, Any]], plan: Plan, **options: Any) -> Sophia:
    """Sophia-G over role groups, every role; --optimizer_args are the arguments of `rules`."""
    return Sophia(groups, rules(plan, **options), plan)


def rules(plan: Plan, *, rho: float = 0.04, period: int = 10) -> dict[str, MakeRule]:
    """Sophia-G for every role. rho, period: see ClippedNewton."""
    return {"sophia": lambda params: Rule(params, ClippedNewton(rho, period), Step())}
