"""Adam-mini (arXiv:2406.16793): Adam with one second moment per block of weights instead of per weight.

v is the moving average of the mean of G^2 over a block. The paper's partition of a Transformer, by roles:

| of | a block is |
|---|---|
| queries and keys | all rows of a head; of grouped keys, of a key-value head |
| values, output projections, feed-forward networks, experts, any other matrix, kernels | a row: an output neuron |
| token table and output projection of the model | a row: a token |
| gains and biases | the whole vector; of Mamba's A, (channels, states), a row |

Its state is half of Adam's: v is one number per row, also where the rows of a head share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lit_gpt.optim.engine.directions import buffers
from lit_gpt.optim.engine.matrix_batches import Batch, Task, is_stacked
from lit_gpt.optim.engine.role_optimizer import Control, Group, Rule, State
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.roles import blocks_of
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import Kept, OptimizerFacts, UpdateRule, everywhere

ALIASES = ("adamw_mini",)

# Momentum, and one second moment per row; that of a vector is a single number.
ROW_ADAM = UpdateRule("adam_mini", lambda shape, args: Kept(prod(shape) + (len(shape) > 1) * prod(shape[:-1])))
FACTS = OptimizerFacts(everywhere(ROW_ADAM))


@dataclass(frozen=True)
class BlockAdam:
    """m / (sqrt(v) + eps), bias-corrected, v per row, or per block of rows where the batch has several."""

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Step count, momentum, and v for every row, sharded like the rows."""
        v = torch.zeros_like(p.detach()[..., :1] if p.ndim else p)
        return {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "row_square": v}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        g_BrC, (beta1, beta2) = control.gradients(batch), group["betas"]
        momenta, squares = buffers(batch, state, "exp_avg"), buffers(batch, state, "row_square")
        torch._foreach_mul_(momenta, control.decay(beta1))
        torch._foreach_add_(momenta, batch.split(g_BrC), alpha=1 - beta1)
        mean_Br1 = g_BrC.square().mean(-1, keepdim=True)
        if batch.params[0].scores:  # type: ignore[attr-defined]
            whole = yield from batch.assemble(mean_Br1)
            mean_Br1 = yield from batch.scatter(_block_means(whole, batch.blocks))
        v_Br1 = batch.join(squares).mul_(control.decay(beta2)).add_(mean_Br1 * control.rate(1 - beta2))
        batch.store(v_Br1, squares)
        steps = buffers(batch, state, "step")
        torch._foreach_add_(steps, control.rate(1.0))
        step = steps[0].clamp(min=1.0)  # a first step that is skipped must not divide by 0
        root = v_Br1.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        return batch.join(momenta).div_(1 - beta1**step).div_(root)


def _block_means(x_bR1: Tensor, blocks: int) -> Tensor:
    """Every row gets the mean of its block."""
    b, rows, _ = x_bR1.shape
    means = x_bR1.reshape(b, blocks, rows // blocks).mean(-1, keepdim=True)
    return means.expand(b, blocks, rows // blocks).reshape(b, rows, 1)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """Adam-mini for every role; there are no --optimizer_args."""
    return {"adam_mini": lambda params: Rule(params, BlockAdam(), Step(), _blocks)}


def _blocks(p: Tensor) -> int:
    """How many second moments a matrix has: one per head of queries or keys, else one per row."""
    if p.scores:  # type: ignore[attr-defined]
        return blocks_of(p, maps=False, heads=True)
    return p.shape[-2] if is_stacked(p) else p.shape[0] if p.ndim > 1 else 1
