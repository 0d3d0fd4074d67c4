"""LAMB (arXiv:1904.00962): Adam's step, as long as a fraction eta of the weights' norm, per tensor.

With r = m / (sqrt(v) + eps) + lambda W (both moments bias-corrected, unless --optimizer_args.bias_correction false):
W <- W - eta |W| / |r| r; where a norm is 0 the ratio is 1. Each expert is a tensor of its own; all kernels of a
convolution are one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.optim.engine.directions import Adam
from lit_gpt.optim.engine.matrix_batches import Batch, Task
from lit_gpt.optim.engine.role_optimizer import Control, Group, Rule, State
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere

FACTS = OptimizerFacts(everywhere(UpdateRule("lamb", copies(2))), rate_decides=True)


@dataclass(frozen=True)
class TrustRatio:
    """W <- W - eta |W| / |r| r with r = D + lambda W."""

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """There is no state."""
        return {}

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]:
        """See role_optimizer.Update."""
        d_BrC = d_BrC.add_(x_BrC, alpha=group["weight_decay"])
        weights = yield from batch.norms(x_BrC)
        steps = yield from batch.norms(d_BrC)
        ratio_B = torch.where((weights > 0) & (steps > 0), weights / steps, 1.0)
        x_BrC.sub_(d_BrC.mul_((control.rate(group["lr"]) * ratio_B)[:, None, None]))


def rules(plan: Plan, *, bias_correction: bool = True) -> dict[str, MakeRule]:
    """LAMB for every role. bias_correction: divide the moments by 1 - beta^t, as Adam does."""
    return {"lamb": lambda params: Rule(params, Adam(corrected=bias_correction), TrustRatio())}
