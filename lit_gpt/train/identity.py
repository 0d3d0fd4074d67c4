"""What makes a run this run, and which options made another run of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.parallel import resolved_precision
from lit_gpt.plugins import digests
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.plan import difference, run_length, unaffected
from lit_gpt.utils.files import regular
from lit_gpt.utils.launcher import world_size

OLD_DEFAULT = "device default"  # what early runs wrote for no --precision
Changes = dict[str, tuple[Any, Any]]  # option -> (there, here)


def identity(resolved: ResolvedRun) -> dict[str, Any]:
    """What must not change within a run folder: Plan, model and numerics, as JSON values (departure D9).

    Precisions are those that are computed in, however they were typed.
    """
    plan = resolved.plan.to_dict()
    del plan["memory"]  # a run may go on with another kind or number of GPUs
    run = resolved.run
    numerics = _numerics(run.precision, run.residual_precision, run.table_precision, run.logits_precision)
    if run.fp8:
        numerics["fp8"] = run.fp8_recipe
    if run.reduce_precision != "fp32":
        numerics["reduce_precision"] = run.reduce_precision
    if plugins := digests():  # their code is computed with, too
        numerics["plugins"] = plugins
    if replaced := _replaced_betas(resolved.plan):
        numerics["betas_of_the_rule"] = replaced
    return json.loads(json.dumps({"plan": plan, "model": resolved.model.to_dict(), "numerics": numerics}))


def _replaced_betas(plan: Plan) -> list[str]:
    """Roles whose betas are the scaling rule's and not the optimizer's own.

    Plans of earlier versions showed the same betas for them, and trained with others.
    """
    facts = OPTIMIZERS.facts(plan.optimizer)
    return [name for name, r in plan.roles.items() if plan.counts.get(name) and r.betas and facts.rule(name).gives_way]


def known_as(old: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that an earlier version wrote, as this one would.

    New fields have their defaults, and betas and an eps of a role that its optimizer does not read are left out.
    """
    plan, model, numerics = dict(old["plan"]), old["model"], old["numerics"]
    try:
        numerics = {**numerics, **_of_earlier(numerics)}
        there = Plan.from_dict(plan)
        facts, args = OPTIMIZERS.facts(there.optimizer), there.optimizer_args
        roles = {name: facts.acting(name, role, args) for name, role in there.roles.items()}
        plan, model = replace(there, roles=roles).to_dict(), ModelConfig.from_dict(model).to_dict()
    except (
        TypeError,
        KeyError,
        ValueError,
        AttributeError,
        UserError,
    ):  # fields that this version does not know: they differ
        pass
    plan.pop("memory", None)
    return json.loads(json.dumps({"plan": plan, "model": model, "numerics": numerics}))


def _comparable(parts: dict[str, Any]) -> dict[str, Any]:
    """An identity without what makes no other run of it.

    That is the places of the runs that it is a fork of, which may move, and the roles of which the model has no
    parameter: a later version knows of more roles.
    """
    plan = dict(parts["plan"])
    if isinstance(fork := plan.get("fork"), dict):
        plan["fork"] = {**fork, "path": "", "parents": []}
    if isinstance(counts := plan.get("counts"), dict) and isinstance(roles := plan.get("roles"), dict):
        plan["counts"] = {name: count for name, count in counts.items() if count}
        plan["roles"] = {name: role for name, role in roles.items() if counts.get(name)}
    return {**parts, "plan": plan}


def is_extension(old: Mapping[str, Any], resolved: ResolvedRun, tokens: int) -> bool:
    """Whether `old`, an identity, differs from this run's in the budget alone, and `tokens` tokens are the same."""
    there, here = _comparable(known_as(old)), _comparable(identity(resolved))
    if there["model"] != here["model"] or there["numerics"] != here["numerics"]:
        return False
    try:
        old_plan, plan = (Plan.from_dict(parts["plan"]) for parts in (there, here))
    except (TypeError, KeyError, ValueError, AttributeError):  # of another version
        return False
    if tokens and run_length(old_plan) != run_length(plan) and as_long_as_the_run(plan):
        return False
    return unaffected(old_plan, plan, tokens, world_size() * resolved.run.micro_bsz * plan.context)


def as_long_as_the_run(plan: Plan) -> list[str]:
    """The options of its optimizer that were not given and are the run's number of steps then."""
    return [name for name in OPTIMIZERS.facts(plan.optimizer).run_length if plan.optimizer_args.get(name) is None]


def _numerics(precision: str | None, residual: str, tables: str, logits: str) -> dict[str, Any]:
    computed = resolved_precision(precision)
    of = {"residual_precision": residual, "logits_precision": logits}
    found = {name: "fp32" if asked == "fp32" else computed for name, asked in of.items()}
    return {"precision": computed, "table_precision": tables} | found


def _of_earlier(numerics: Mapping[str, Any]) -> dict[str, Any]:
    label = numerics.get("precision")
    precision = None if label == OLD_DEFAULT else label
    tables, logits = (numerics.get(f"{what}_precision", "fp32") for what in ("table", "logits"))
    return _numerics(precision, numerics["residual_precision"], tables, logits)


def what_differs(old: Mapping[str, Any], resolved: ResolvedRun, options: Path) -> list[str]:
    """Lines "what: there -> here", none where `old`, an identity, is this run's.

    options: the config.yaml of that run. Named are the options that make the difference, and what of Plan, model and
    precision no option explains, such as a change of the data.
    """
    old = _comparable(known_as(old))
    changed = difference(old, _comparable(identity(resolved)))
    if not changed:
        return []
    options_changed = changed_options(options, resolved.run)
    options_changed.pop("plugins", None)  # wherever they lie; and what another config names is not run to see
    whole = _with(resolved.run, options_changed)
    if whole is None:
        return changed
    guilty = {}
    for name, values in options_changed.items():
        others = {key: value for key, value in options_changed.items() if key != name}
        if difference(whole, _with(resolved.run, others) or whole):
            guilty[name] = values
    return [*described(guilty), *difference(old, whole), *_following(old["plan"], resolved)] or changed


def _following(there: Mapping[str, Any], resolved: ResolvedRun) -> list[str]:
    """Defaults that follow the budget (D89, D90 of the departures), and how to keep those of `there`, a Plan."""
    run, plan, found = resolved.run, resolved.plan, []
    old = there["schedule"]["warmup_tokens"]
    if run.base_hps.warmup_tokens is None and old != plan.schedule.warmup_tokens:
        found.append(f"the warm-up follows the budget; --base_hps.warmup_tokens {old:.0f} keeps it")
    if run.total_bsz is None and (old := there["base_batch_tokens"]) != plan.base_batch_tokens:
        kept = f"--total_bsz {there['batch_tokens']} --base_hps.b0 {old:.0f}"
        found.append(f"the batch follows the budget; {kept} keeps it")
    if (names := as_long_as_the_run(plan)) and (steps := _length(there)) != run_length(plan):
        kept = " ".join(f"--optimizer_args.{name} {steps}" for name in names)
        found.append(f"{' and '.join(names)} follow the budget; a run that is to be made longer is started with {kept}")
    return found


def _length(there: Mapping[str, Any]) -> int:
    try:
        return run_length(Plan.from_dict(dict(there)))
    except (TypeError, KeyError, ValueError, AttributeError):  # of another version
        return there["steps"]


def described(changes: Changes) -> list[str]:
    """A line for each option."""
    return [f"--{name}: {_typed(there)} -> {_typed(here)}" for name, (there, here) in changes.items()]


def _typed(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:  # tokens
        return str(int(value))
    return "not given" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changed_options(options: Path, run: RunConfig) -> Changes:
    """The options in which a config.yaml and a run differ; none where there is no such file."""
    try:
        old = yaml.safe_load(regular(options).read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    there, here = (_flat(values) for values in (old if isinstance(old, dict) else {}, dataclasses.asdict(run)))
    there, here = (json.loads(json.dumps(values, default=str)) for values in (there, here))  # tuples are lists there
    return {name: (there[name], here[name]) for name in here if name in there and there[name] != here[name]}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = {f"base_hps.{key}": value for key, value in (values.get("base_hps") or {}).items()}
    return {**{key: value for key, value in values.items() if key != "base_hps"}, **inner}


def _with(run: RunConfig, changes: Changes) -> dict[str, Any] | None:
    """The identity of a run with these options as they were; None where they cannot be together."""
    old = {name: there for name, (there, _) in changes.items()}
    inner = {name.partition(".")[2]: value for name, value in old.items() if "." in name}
    outer = {name: value for name, value in old.items() if "." not in name}
    try:
        changed = replace(run, base_hps=replace(run.base_hps, **inner), **outer)
        return _comparable(identity(resolve_run(changed, world_size())))
    except UserError:
        return None
