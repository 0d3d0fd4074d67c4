"""Optimizers: one file each, `build(groups, plan) -> Optimizer`, and the table of external.py.

The file name, or the name in the table, is the CLI value.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from lit_gpt.errors import UserError
from lit_gpt.optim._knobs import check, knobs_of
from lit_gpt.optim._rules import OPTIONS
from lit_gpt.optim.external import EXTERNAL
from lit_gpt.registry import Registry
from lit_gpt.scaling.base import Plan

# Names that people type, and what to type instead or why there is nothing; more in docs/optimizers.md.
NOT_HERE = {
    "adam": "Adam is adamw with --base_hps.weight_decay 0",
    "adamw_mini": "It is adam_mini",
    "galore8bit": "galore keeps its state in fp32; adamw8bit has 8-bit state",
    "kron": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "mars": "MARS is mars_adamw, mars_lion or mars_shampoo",
    "psgd": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "schedulefree": "It is schedulefree_adamw or schedulefree_sgd",
}


class OptimizerRegistry(Registry):
    """Files of this folder, then optimizers of other libraries."""

    def names(self) -> list[str]:
        """Every entry's name, sorted."""
        return sorted([*super().names(), *EXTERNAL])

    def load(self, name: str) -> Any:
        """What has `build`. Raises UserError with suggestions when there is none."""
        if name in EXTERNAL:
            return EXTERNAL[name]
        if name in NOT_HERE and name not in self:
            raise UserError(f"There is no optimizer {name!r}. {NOT_HERE[name]}.")
        return super().load(name)


OPTIMIZERS = OptimizerRegistry("lit_gpt.optim", "optimizer", exclude=("groups", "external", "memory", "protocol"))


def build(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over role groups (groups.parameter_groups).

    Raises UserError for arguments that it does not take.
    """
    chosen = OPTIMIZERS.load(plan.optimizer)
    if hasattr(chosen, "rules"):  # those of this folder; what libraries take, Entry.build knows
        options = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(chosen.rules).parameters.values())
        check(plan.optimizer, plan.optimizer_args, (OPTIONS if options else {}) | knobs_of(chosen.rules))
    try:
        return chosen.build(groups, plan)
    except TypeError as error:
        if not plan.optimizer_args:
            raise
        raise UserError(f"--optimizer_args {plan.optimizer_args} do not fit {plan.optimizer}: {error}.") from error
