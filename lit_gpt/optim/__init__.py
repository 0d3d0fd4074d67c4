"""Optimizers: one file each, `build(groups, plan) -> Optimizer`, and the table of external.py.

The file name, or the name in the table, is the CLI value.
"""

from __future__ import annotations

from typing import Any

import torch

from lit_gpt.errors import UserError
from lit_gpt.optim.external import EXTERNAL
from lit_gpt.registry import Registry
from lit_gpt.scaling.base import Plan


class OptimizerRegistry(Registry):
    """Files of this folder, then optimizers of other libraries."""

    def names(self) -> list[str]:
        """Every entry's name, sorted."""
        return sorted([*super().names(), *EXTERNAL])

    def load(self, name: str) -> Any:
        """What has `build`. Raises UserError with suggestions when there is none."""
        if name in EXTERNAL:
            return EXTERNAL[name]
        return super().load(name)


OPTIMIZERS = OptimizerRegistry("lit_gpt.optim", "optimizer", exclude=("groups", "external", "memory", "protocol"))


def build(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over role groups (groups.parameter_groups).

    Raises UserError for arguments that it does not take.
    """
    try:
        return OPTIMIZERS.load(plan.optimizer).build(groups, plan)
    except TypeError as error:
        if not plan.optimizer_args:
            raise
        raise UserError(f"--optimizer_args {plan.optimizer_args} do not fit {plan.optimizer}: {error}.") from error
