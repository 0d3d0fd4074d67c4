"""Rules that several optimizers share: orthogonal momentum with its options, AdamW for other roles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lit_gpt.config.arguments import arguments_of
from lit_gpt.errors import UserError
from lit_gpt.optim.engine.directions import Adam, Orthogonal
from lit_gpt.optim.engine.role_optimizer import FusedAdamW, Rule, Update
from lit_gpt.optim.engine.updates import Step
from lit_gpt.roles import blocks_of
from lit_gpt.scaling.base import Plan

MakeRule = Callable[[Sequence[Tensor]], Any]


def orthogonal_rule(
    plan: Plan, update: Update, *, split_maps: bool = False, split_heads: bool = False, **options: Any
) -> MakeRule:
    """Momentum made orthogonal, then an update.

    split_maps: maps that share a matrix (gate and up of a gated feed-forward network) are
    orthogonalised each for itself. split_heads: so is each head of queries, keys and values.
    options: fields of Orthogonal. Raises UserError where no matrix says that it has heads.
    """
    direction = Orthogonal(**options)

    def make(params: Sequence[Tensor]) -> Rule:
        if split_heads and params[0].role == "matrix" and all(p.heads == 1 for p in params):  # type: ignore[attr-defined]
            raise UserError("No matrix of this model has heads, so --optimizer_args.split_heads cannot act. Drop it.")
        return Rule(params, direction, update, lambda p: blocks_of(p, maps=split_maps, heads=split_heads))

    return make


OPTIONS = arguments_of(orthogonal_rule) | arguments_of(Orthogonal)  # **options of Muon's `rules` and its relatives'


def adamw_rule(plan: Plan, betas: tuple[float, float] | None = None, eps: float | None = None) -> MakeRule:
    """AdamW: fused, unless there is a decay that is cautious, which the kernel cannot do.

    betas, eps: in place of the Plan's; betas that it has for the role stay.
    """

    def make(params: Sequence[Tensor]) -> Any:
        own = None if plan.roles[params[0].role].betas else betas  # type: ignore[attr-defined]
        return Rule(params, Adam(betas=own, eps=eps), Step(cautious=True)) if cautious else FusedAdamW(own, eps)

    cautious = plan.cautious_weight_decay and any(
        r.weight_decay for r in plan.roles.values() if r.update_rule == "adamw"
    )
    return make
