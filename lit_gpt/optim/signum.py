"""Signum (arXiv:1802.04434): every weight moves by the learning rate, against the sign of its momentum.

    M <- mu M + G;  W <- (1 - eta lambda) W - eta sign(M)

With nesterov the sign is that of G + mu M, as torch.optim.SGD looks ahead. The one of pytorch-optimizer cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lit_gpt.config.bounds import Bounds
from lit_gpt.optim.engine.directions import buffers
from lit_gpt.optim.engine.matrix_batches import Batch, Task
from lit_gpt.optim.engine.role_optimizer import Control, Group, Rule, State
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere, taking

FACTS = OptimizerFacts(everywhere(UpdateRule("signum", copies(1), taking())), cautious_decay=True)


@dataclass(frozen=True)
class MomentumSign:
    """sign(M) with M <- mu M + G; with nesterov sign(G + mu M). momentum: mu."""

    momentum: float
    nesterov: bool

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The momentum M, in the shape of the parameter."""
        return {"momentum": torch.zeros_like(p)}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, momenta = control.gradients(batch), buffers(batch, state, "momentum")
        torch._foreach_mul_(momenta, control.decay(self.momentum))
        torch._foreach_add_(momenta, batch.split(g_BrC))
        m_BrC = batch.join(momenta)
        return (g_BrC.add_(m_BrC, alpha=self.momentum) if self.nesterov else m_BrC).sign_()


def rules(
    plan: Plan, *, momentum: Annotated[float, Bounds(0, 1, "high")] = 0.9, nesterov: bool = False
) -> dict[str, MakeRule]:
    """Signum for every role. momentum, nesterov: see MomentumSign."""
    direction, update = MomentumSign(momentum, nesterov), Step(plan.cautious_weight_decay)
    return {"signum": lambda params: Rule(params, direction, update)}
