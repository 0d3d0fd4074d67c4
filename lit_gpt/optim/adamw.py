"""AdamW (arXiv 1711.05101) on torch's fused kernel, with state from the first moment on.

State is created at construction: checkpoints then have the same tensors on every rank and
loading never needs the dummy step that torch's helpers run to create it (which moves
weights under a norm constraint).

Two on-device hooks of the fused kernel are used by train/step.py instead of extra passes
over the gradients: `grad_scale` divides the gradients (clipping and loss normalisation),
`found_inf` skips the update (non-finite gradients).
"""

from __future__ import annotations

from typing import Any

import torch

from lit_gpt.optim._optimizer import RoleOptimizer
from lit_gpt.optim._rules import MakeRule, adamw_rule
from lit_gpt.scaling.base import Plan


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused, with eager state."""

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }


def build(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """AdamW over the groups with the Plan's betas and eps."""
    if plan.cautious_weight_decay:  # which the fused kernel cannot do
        return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)
    return AdamW(groups, betas=(plan.beta1, plan.beta2), eps=plan.eps, **plan.optimizer_args)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """AdamW for every role; there are no --optimizer_args."""
    return {"adamw": adamw_rule(plan)}
