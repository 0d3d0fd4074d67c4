"""Optimizers: one file each, with its FACTS and its `rules` (or `build`), and the table of engine/external.py.

The file name, or the name in the table, is the CLI value; other spellings of it are resolved once (`resolve`).
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from types import ModuleType
from typing import Any, Literal

import torch

from lit_gpt.config.arguments import Argument, arguments_of, check
from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.optim.engine.external import EXTERNAL, Entry
from lit_gpt.optim.engine.role_optimizer import RoleOptimizer
from lit_gpt.optim.engine.rules import OPTIONS
from lit_gpt.registry import Registry, spelt_like
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts

# Names that people type, and what to type instead or why there is nothing; more in docs/optimizers.md.
NOT_HERE = {
    "adam": "Adam is adamw with --base_hps.weight_decay 0",
    "galore_8bit": "galore keeps its state in fp32; adamw8bit has 8-bit state",
    "kron": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "microadam": "Other optimizers with a small state are adamw8bit, galore and apollo",
    "psgd": "PSGD draws random numbers without a seed of its own, so ranks would drift apart; the nearest is soap",
    "schedulefree": "It is schedulefree_adamw or schedulefree_sgd",
}


class OptimizerRegistry(Registry):
    """Files of this folder, and optimizers of other libraries; a file comes before a row of its name."""

    def takes(self, entry: Any) -> bool:
        """Whether a module is an optimizer: it states the facts of one, or builds one."""
        return hasattr(entry, "FACTS") or super().takes(entry)

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

    def facts(self, name: str) -> OptimizerFacts:
        """What a Plan must know of it. Raises UserError for a file that does not say."""
        chosen: Any = self.load(name)
        if isinstance(chosen, Entry):
            return chosen.facts
        if not isinstance(facts := getattr(chosen, "FACTS", None), OptimizerFacts):
            raise UserError(
                f"The optimizer {name} does not state its facts, and a Plan needs them. Write FACTS = "
                f"OptimizerFacts(...) in {chosen.__file__}; docs/adding.md shows how."
            )
        return facts


def _aliases(chosen: Any) -> tuple[str, ...]:
    return chosen.aliases if isinstance(chosen, Entry) else getattr(chosen, "ALIASES", ())


OPTIMIZERS = OptimizerRegistry("lit_gpt.optim", "optimizer", "build(groups, plan)", EXTERNAL)


def share_rules(one: str, other: str) -> bool:
    """Whether update rules of one name keep the same state in both optimizers.

    So it is in one optimizer, and among those that are made of `rules`; libraries have names of their own.
    """
    return one == other or all(name in OPTIMIZERS and hasattr(OPTIMIZERS.load(name), "rules") for name in (one, other))


def check_arguments(plan: Plan) -> None:
    """Raise UserError for --optimizer_args that the Plan's optimizer does not take, or whose steps fail.

    Those of libraries are tried out on small weights, where the library is installed.
    """
    chosen = OPTIMIZERS.load(plan.optimizer)
    if (entry := _entry(chosen)) is None:
        _check_file(chosen, plan)
        return
    _check_averages(entry.traits.averages, plan)
    with suppress(NotInstalled):
        entry.try_out(plan)


def _entry(chosen: Any) -> Entry | None:
    """A row of the table, or that of a file which has a class as libraries have them."""
    return chosen if isinstance(chosen, Entry) else getattr(chosen, "ENTRY", None)


def _check_file(chosen: ModuleType, plan: Plan) -> None:
    """Against the arguments of `rules`, and what they refuse; without `rules` against those of `build`."""
    check(f"optimizer {plan.optimizer}", "--optimizer_args", plan.optimizer_args, options_of(chosen))
    if hasattr(chosen, "rules"):
        chosen.rules(plan, **_of_rules(plan))


def _check_averages(own: bool, plan: Plan) -> None:
    """Raise UserError for --ema beside an optimizer with averages of its `own`, which are what it evaluates."""
    if own and plan.ema:
        raise UserError(
            f"--optimizer {plan.optimizer} averages the weights itself, and its averages are validated, saved and "
            "exported. Drop --ema, or take another optimizer."
        )


def options_of(chosen: Any) -> dict[str, Any]:
    """What --optimizer_args may hold for an optimizer's file, by name: the arguments of its `rules` or `build`."""
    function = chosen.rules if hasattr(chosen, "rules") else chosen.build
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    of_all = {} if hasattr(chosen, "build") else {"state": Argument(Literal["fp32", "int8"], "fp32")}
    return of_all | (OPTIONS if open_ended else {}) | arguments_of(function)


def _of_rules(plan: Plan) -> dict[str, Any]:
    """--optimizer_args but that of RoleOptimizer, in what its state is kept."""
    return {name: value for name, value in plan.optimizer_args.items() if name != "state"}


def build(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over role groups (groups.parameter_groups).

    A file may have its own `build`; else its `rules` are those of a RoleOptimizer. Raises UserError for arguments
    that it does not take, and for --ema where it averages itself.
    """
    optimizer = _built(groups, plan)
    _check_averages(getattr(optimizer, "averages", False), plan)
    optimizer.register_step_post_hook(_mark_written)
    return optimizer


def _mark_written(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Count the step as a write, by which ops.dtypes.version sees it: torch's fused kernels do not (2.13)."""
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])


def _built(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    chosen = OPTIMIZERS.load(plan.optimizer)
    if (entry := _entry(chosen)) is not None:
        return entry.build(groups, plan)
    _check_file(chosen, plan)
    if not hasattr(chosen, "build"):
        state = plan.optimizer_args.get("state", "fp32")
        return RoleOptimizer(groups, chosen.rules(plan, **_of_rules(plan)), plan, state)
    optimizer = chosen.build(groups, plan, **plan.optimizer_args)
    _check_built(optimizer, groups, plan)
    return optimizer


def _check_built(optimizer: Any, groups: list[dict[str, Any]], plan: Plan) -> None:
    """Raise UserError for an optimizer of somebody's own that would leave weights as they are, or lose its state.

    A checkpoint is loaded into the state that there is, so one that begins in `step` would begin anew on a resume.
    """
    build, facts = f"build of the optimizer {plan.optimizer!r}", OPTIMIZERS.facts(plan.optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{build} returned {type(optimizer).__name__}; return a torch.optim.Optimizer.")
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    for group in groups:
        if not trained.issuperset(group["params"]):
            raise UserError(f"{build} left out parameters of the role {group['role']}; it must train all groups.")
        memory = facts.rule(group["role"]).memory
        for p in group["params"]:
            if memory is not None and any(memory(p.shape, plan.optimizer_args)) and not optimizer.state.get(p):
                raise UserError(
                    f"{build} keeps nothing yet for the role {group['role']}, and its FACTS say that it will. Make "
                    "the state in the constructor, with torch.zeros_like(p), so that a resume can load it."
                )
