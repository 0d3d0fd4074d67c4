"""Optimizers: one file each, `build(groups, plan) -> Optimizer`, and the table of external.py.

The file name, or the name in the table, is the CLI value; other spellings of it are resolved once (`resolve`).
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch

from lit_gpt.config.arguments import arguments_of, check
from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.optim._rules import OPTIONS
from lit_gpt.optim.external import EXTERNAL, Entry
from lit_gpt.registry import Registry, spelt_like
from lit_gpt.scaling.base import Plan

# Names that people type, and what to type instead or why there is nothing; more in docs/optimizers.md.
NOT_HERE = {
    "adam": "Adam is adamw with --base_hps.weight_decay 0",
    "galore_8bit": "galore keeps its state in fp32; adamw8bit has 8-bit state",
    "kron": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "psgd": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "schedulefree": "It is schedulefree_adamw or schedulefree_sgd",
}


class OptimizerRegistry(Registry):
    """Files of this folder, then optimizers of other libraries."""

    def built_in(self) -> list[str]:
        """Less the machinery that still lies among the entries."""
        machinery = ("groups", "external", "memory", "protocol")
        return [name for name in super().built_in() if name[0] != "_" and name not in machinery]

    def resolve(self, name: str) -> str:
        """The entry's name for any spelling of it: case, hyphens and underscores aside, or an alias.

        Aliases stand with the entry: ALIASES of a file, `aliases` of a row. Raises UserError as `load` does.
        """
        if (found := super().resolve(name)) in self:
            return found
        aliases = {alias: entry for entry in self.names() for alias in _aliases(self.load(entry))}
        if (meant := spelt_like(name, aliases)) is not None:
            return aliases[meant]
        if (missing := spelt_like(name, NOT_HERE)) is not None:
            raise UserError(f"There is no optimizer {name!r}. {NOT_HERE[missing]}.")
        raise self.unknown(name, aliases)


def _aliases(chosen: Any) -> tuple[str, ...]:
    return chosen.aliases if isinstance(chosen, Entry) else getattr(chosen, "ALIASES", ())


OPTIMIZERS = OptimizerRegistry("lit_gpt.optim", "optimizer", "build(groups, plan)", EXTERNAL)


def check_arguments(plan: Plan) -> None:
    """Raise UserError for --optimizer_args that the Plan's optimizer does not take, or whose steps fail.

    Those of libraries are tried out on small weights, where the library is installed.
    """
    chosen = OPTIMIZERS.load(plan.optimizer)
    entry = chosen if isinstance(chosen, Entry) else getattr(chosen, "ENTRY", None)
    if entry is None:
        _check_native(chosen, plan)
        return
    with suppress(NotInstalled):
        entry.try_out(plan)


def _check_native(chosen: Any, plan: Plan) -> None:
    """Against the arguments of `rules`, and what they refuse."""
    if not hasattr(chosen, "rules"):
        return
    options = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(chosen.rules).parameters.values())
    allowed = (OPTIONS if options else {}) | arguments_of(chosen.rules)
    check(f"optimizer {plan.optimizer}", "--optimizer_args", plan.optimizer_args, allowed)
    chosen.rules(plan, **plan.optimizer_args)


def build(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over role groups (groups.parameter_groups).

    Raises UserError for arguments that it does not take.
    """
    chosen = OPTIMIZERS.load(plan.optimizer)
    _check_native(chosen, plan)
    try:
        return chosen.build(groups, plan)
    except TypeError as error:
        if not plan.optimizer_args:
            raise
        raise UserError(f"--optimizer_args {plan.optimizer_args} do not fit {plan.optimizer}: {error}.") from error
