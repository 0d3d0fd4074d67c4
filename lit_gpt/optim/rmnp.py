"""RMNP: row-normalised momentum for matrices, a Muon without Newton-Schulz.

With momentum B <- beta B + (1 - beta) G and U = (1 - mu) G + mu B, every row of a matrix moves by the same
length: X <- (1 - eta lambda) X - eta max(1, sqrt(R / C)) U / |U|_row. Matrices, experts and routers; every
other role is trained by AdamW. Rows are whole on every rank, so nothing is communicated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.optim.engine.directions import buffers
from lit_gpt.optim.engine.matrix_batches import Batch, Task
from lit_gpt.optim.engine.role_optimizer import Control, Group, Rule, State
from lit_gpt.optim.engine.rules import MakeRule, adamw_rule
from lit_gpt.optim.engine.updates import EPS, Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, hidden, taking

RMNP = UpdateRule("rmnp", copies(1), taking())
FACTS = OptimizerFacts(hidden(RMNP), steps="rows", plan_momentum=True, cautious_decay=True)


@dataclass(frozen=True)
class RowNormalized:
    """U / |U|_row, with the group's mu in the Nesterov step. beta: of the moving average."""

    beta: float

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The momentum B, in the shape of the parameter."""
        return {"momentum": torch.zeros_like(p)}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, momenta = control.gradients(batch), buffers(batch, state, "momentum")
        torch._foreach_mul_(momenta, control.decay(self.beta))
        torch._foreach_add_(momenta, batch.split(g_BrC), alpha=1 - self.beta)
        u_BrC = g_BrC.mul_(1 - group["mu"]).add_(batch.join(momenta), alpha=group["mu"])
        return u_BrC.div_(torch.linalg.vector_norm(u_BrC, dim=-1, keepdim=True).clamp(min=EPS))


def rules(plan: Plan, *, beta: float = 0.95) -> dict[str, MakeRule]:
    """RMNP's rules; mu is the Plan's momentum. beta: of the moving average."""
    update = Step(plan.cautious_weight_decay, "clip")
    return {
        "rmnp": lambda params: Rule(params, RowNormalized(beta), update),
        "adamw": adamw_rule(plan),
    }
