"""AdEMAMix (arXiv:2409.03137, algorithm 1): Adam whose momentum is a fast average of gradients and a slow one.

    m1 <- beta1 m1 + (1 - beta1) G;  m2 <- beta3(t) m2 + (1 - beta3(t)) G;  v <- beta2 v + (1 - beta2) G^2
    W <- (1 - eta lambda) W - eta (m1 / (1 - beta1^t) + alpha(t) m2) / (sqrt(v / (1 - beta2^t)) + eps)

alpha(t) rises from 0 on a line. beta3(t) rises from beta1 so that its half-life is on a line (appendix A.1), since near
1 equal steps of beta are very unequal steps of memory. Each has a warm-up of its own, which the library's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
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
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere
from lit_gpt.scaling.plan import run_length

FACTS = OptimizerFacts(
    everywhere(UpdateRule("ademamix", copies(3))), cautious_decay=True, run_length=("alpha_warmup", "beta3_warmup")
)
SMALLEST = 1e-8  # a beta of 0 has no half-life; this one's is a 27th of a step


@dataclass(frozen=True)
class TwoMomenta:
    """(m1 / (1 - beta1^t) + alpha(t) m2) / (sqrt(v / (1 - beta2^t)) + eps).

    alpha_warmup, beta3_warmup: steps until alpha and beta3 are what they are called; 0 is at once.
    """

    alpha: float
    beta3: float
    alpha_warmup: int
    beta3_warmup: int

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Step count, both momenta and the second moment."""
        state = {"step": torch.zeros((), device=p.device)}
        return state | {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_slow", "exp_avg_sq")}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, (beta1, beta2) = control.gradients(batch), group["betas"]
        grads, steps = batch.split(g_BrC), buffers(batch, state, "step")
        torch._foreach_add_(steps, control.rate(1.0))
        step = steps[0].clamp(min=1.0)  # a first step that is skipped must not divide by 0
        fast, slow, v = (buffers(batch, state, key) for key in ("exp_avg", "exp_avg_slow", "exp_avg_sq"))
        beta3 = self._beta3(step, beta1)
        for m, beta in ((fast, torch.full_like(beta3, beta1)), (slow, beta3)):
            torch._foreach_mul_(m, torch.where(control.skip, 1.0, beta))
            torch._foreach_add_(m, torch._foreach_mul(grads, 1 - beta))
        torch._foreach_mul_(v, control.decay(beta2))
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        alpha = self.alpha * self._part(step, self.alpha_warmup)
        d_BrC = batch.join(fast).div_(1 - beta1**step).add_(batch.join(slow) * alpha)
        return d_BrC.div_(batch.join(v).div_(1 - beta2**step).sqrt_().add_(group["eps"]))

    def _part(self, step: Tensor, warmup: int) -> Tensor:
        return (step / warmup).clamp(max=1.0) if warmup else torch.ones_like(step)

    def _beta3(self, step: Tensor, beta1: float) -> Tensor:
        """ln beta is ln 1/2 over the half-life, so 1 / ln beta is on a line where the half-life is."""
        part = self._part(step, self.beta3_warmup).double()
        start, end = log(max(min(beta1, self.beta3), SMALLEST)), log(self.beta3)
        return (1 / ((1 - part) / start + part / end)).exp().to(step.dtype)


def rules(
    plan: Plan,
    *,
    alpha: Annotated[float, Bounds(0, 1e6)] = 8.0,
    beta3: Annotated[float, Bounds(0, 1, "both")] = 0.999,
    alpha_warmup: Annotated[int, Bounds(0, 1e9)] | None = None,
    beta3_warmup: Annotated[int, Bounds(0, 1e9)] | None = None,
) -> dict[str, MakeRule]:
    """AdEMAMix for every role.

    alpha: weight of the slow momentum. beta3: how slow it is. Their defaults are those of arXiv:2509.01440.
    alpha_warmup, beta3_warmup: in steps; None is the run's length, as in that paper, which a batch ramp shortens.
    """
    warmups = (run_length(plan) if given is None else given for given in (alpha_warmup, beta3_warmup))
    direction, update = TwoMomenta(alpha, beta3, *warmups), Step(plan.cautious_weight_decay)
    return {"ademamix": lambda params: Rule(params, direction, update)}
