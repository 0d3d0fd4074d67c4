"""Typed options that change nothing in this run, as notes.

Launch commands are written for many runs at once (ArchScale's dense ones have --sparsity and --aux_style), so this is
no error. Tokens of a name are not noted, and neither is what switches off what such a run lacks. Options of the machine
are not either: one line is for a laptop and for many GPUs. Nor are those that only describe the base model, such as
--base_hps.d0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.config.names import NameFields
from lit_gpt.config.readers import HEADS, fields_of
from lit_gpt.config.resolve import DEFAULTS
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.parallel.offload import chosen_layers
from lit_gpt.preflight.model_options import EXPERT_FLAGS, MODEL_FLAGS
from lit_gpt.roles import FILLED
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts
from lit_gpt.scaling.plan import StepValues, count_steps, step_values

EXPERT_OPTIONS = (*EXPERT_FLAGS, "expert_parallel", "expert_backend")
_OF_ATTENTION = [flag for flag, name in MODEL_FLAGS.items() if name in fields_of(ModelConfig, HEADS)]
ATTENTION_FLAGS = (*_OF_ATTENTION, "value_embeddings", "yarn_scale")
FFN_FLAGS = ("mlp", "ffn_norm", "ffn_multiple_of")
HPS = "base_hps."
CONSTANTS = ("base_hps.beta1", "base_hps.beta2", "base_hps.eps", "base_hps.muon_beta")  # of optimizers
STARTS = ("embedding_init_std", "head_init_std", "head_start")
SAVES = ("keep_best", "decay_at", "stop_after")  # which save at other steps than --save_step's
PARTS = 32  # of a run, after each of which its steps are compared; and halvings of the run towards either end


def unread_options(
    run: RunConfig, name: NameFields, model: GPT, build: Callable[[RunConfig], Plan], ranks: int
) -> tuple[str, ...]:
    """Notes about the typed options that nothing in this run reads, or on which nothing in it depends.

    build: the Plan of options. ranks: processes of the run. An option of rates, starts or the optimizer acts where
    another value of it would change rates, starts or what the facts of the optimizer say that it reads; so this holds
    for every rule and optimizer, a person's own included.
    """
    options = vars(run) | {HPS + field: value for field, value in vars(run.base_hps).items()}
    defaults = (
        vars(RunConfig()) | DEFAULTS | {HPS + field: value for field, value in vars(BaseHyperparameters()).items()}
    )
    given = {o: v for o, v in options.items() if v != defaults[o] and o not in name.fields}
    plan = build(run)
    facts = OPTIMIZERS.facts(plan.optimizer)
    own = _rates_and_starts(plan, facts)

    def planned(option: str, value: Any) -> Plan:
        if (field := option.removeprefix(HPS)) == option:
            return build(replace(run, **{option: value}))
        return build(replace(run, base_hps=replace(run.base_hps, **{field: value})))

    def idle(option: str) -> bool:
        value = given.get(option)
        if option not in given or not (value or option == "head_init_std"):  # where null and 0 are a start, too
            return False
        number = isinstance(value, int | float) and not isinstance(value, bool) and value
        try:
            other = planned(option, number / 2 if number else defaults[option])
        except UserError:  # what is refused would act
            return False
        return _rates_and_starts(other, facts) == own

    whys = _whys(run.parameterization, run.optimizer, run.schedule, bool(plan.counts.get("head")))
    reasons = {why: [option for option in asked if idle(option)] for why, asked in whys.items()}
    if run.depth_scale is False and plan.multipliers.residual != 1:
        reasons[f"--parameterization {run.parameterization} has a factor of its own"] = ["depth_scale false"]
    steps = count_steps(plan, ranks * run.micro_bsz * plan.context)
    lacking = _beside_model(given, options) | _of_steps(given, options, steps)
    lacking |= _of_offload(given, options, len(model.config.layers))
    return (
        *_note("nothing reads", _of_archscale(given)),
        *_note(f"nothing in {run.train_model} reads", _no(_of_model(given, model, run.schedule))),
        *_note("nothing in this run reads", _no(lacking)),
        *_note("nothing in this run depends on", reasons),
    )


def _of_model(given: Mapping[str, Any], model: GPT, schedule: str | None) -> Mapping[str, list[str]]:
    """What the model lacks -> the given options about it."""
    config, attends = model.config, bool(model.attending)
    bases = [spec.rope_base for spec in model.attending if config.position == "rope"]
    turned = any(base != 0 for base in bases)
    placed = turned or config.position == "learned"
    tables = ["position"] if config.position == "learned" else []  # which are added to the embedding
    shared = any(config.first_layer(layer) != layer for layer in range(config.depth))
    experts = config.experts
    all_used = experts is not None and experts.active == experts.routed
    balanced = experts is None or experts.aux_gamma
    return {
        "experts": _on(given, *EXPERT_OPTIONS) if experts is None else [],
        "experts beside those that every token uses": _of_choice(given, experts) if experts and all_used else [],
        "balance loss": [] if balanced else _on(given, "aux_style", "global_aux", "exact_aux"),
        "windows": _on(given, "swa_len") if all(spec.window is None for spec in config.layers) else [],
        "feed-forward networks": [] if any(spec.ffn for spec in config.layers) else _on(given, *FFN_FLAGS),
        "residual stream": _on(given, "depth_scale") if config.skip == "none" else [],
        "attention": [] if attends else [flag for flag in _on(given, *ATTENTION_FLAGS) if flag not in tables],
        "layers that share a block": [] if shared else _on(given, "share_per_layer"),
        "rotary positions with the model's base": _on(given, "rope_base") if attends and None not in bases else [],
        "rotary positions": _on(given, "yarn_scale") if attends and not turned else [],
        "positions": _on(given, "doc_positions") if config.varlen and not placed else [],
        "--varlen": [] if config.varlen else _on(given, "doc_positions"),
        "wsd schedule": [] if schedule in ("wsd", "wsd_s") else _on(given, "decay", "decay_fraction"),
    }


def _of_choice(given: Mapping[str, Any], experts: Experts) -> list[str]:
    """The given options about which experts a token uses, and about their balance, where it uses all of them."""
    idle = ["expert_routing", "bias_rate", *(["router_gate"] if experts.gate != "sigmoid" else [])]
    if experts.capacity is None or experts.capacity >= 1:  # each serves all tokens, and switch losses are constant
        even = ("aux_gamma", "aux_style", "global_aux", "exact_aux") if experts.aux_style != "entropy" else ()
        idle += ["expert_capacity", *even]
    return _on(given, *idle)


def _of_archscale(given: Mapping[str, Any]) -> Mapping[str, list[str]]:
    """Why nothing here reads an option of ArchScale -> that option, where it was given."""
    whys = {
        "several processes always train with FSDP2": "fsdp2",
        "logging never holds up training": "logging_multiprocessing",
        "nor in ArchScale": HPS + "n0_mult",
    }
    return {why: [option] for why, option in whys.items() if option in given}


def _beside_model(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the run lacks beside its model -> the given options about it."""
    tracked = {"wandb", "mlflow"} & set(options["loggers"])
    of_trackers = ["tracker_name", "tracker_group", "tracker_tags", "wandb_project"]
    of_validation = ["eval_sequences", "eval_positions", "num_extrp"]
    if not options["eval_tasks"] or options["eval_tasks_step"]:  # else it says when these are asked
        of_validation.insert(0, "eval_step")
    rounded, drawn = options["precision"] != "fp32", not (options["init_from"] or options["fork_from"])
    return {
        "--val_data_dir": [] if options["val_data_dir"] else _on(given, *of_validation),
        "--sample_prompts": [] if options["sample_prompts"] else _on(given, "sample_tokens"),
        "--eval_tasks": [] if options["eval_tasks"] else _on(given, "eval_tasks_limit"),
        "--loggers wandb or mlflow": [] if tracked else _on(given, *of_trackers),
        "--loggers wandb": [] if "wandb" in tracked else _on(given, "wandb_entity"),
        "--compile": _on(given, "compile_cache") if options["compile"] is False else [],
        "--fp8": [] if options["fp8"] else _on(given, "fp8_recipe", "fp8_gather"),
        "--precision bf16": [] if rounded else _on(given, "residual_precision", "logits_precision"),
        "tables that are drawn, which the checkpoint has": [] if drawn else _on(given, *STARTS),
    }


def _of_offload(given: Mapping[str, Any], options: Mapping[str, Any], layers: int) -> dict[str, list[str]]:
    """Why no layer keeps anything that could wait on the host -> --act_offload."""
    how, asked = options["act_ckpt"], _on(given, "act_offload")
    if not chosen_layers(options["act_offload"], layers):
        return {"layer before the last one": asked}
    recomputed = how in ("selective", "full") and options["compile"] is False
    return {f"--compile, without which --act_ckpt {how} leaves nothing": asked if recomputed else []}


def _of_steps(given: Mapping[str, Any], options: Mapping[str, Any], steps: int) -> dict[str, list[str]]:
    """The given options about steps that the run does not have."""
    every, saves_beside = options["keep_every"], any(options[name] for name in SAVES)
    kept = not every or saves_beside or steps % every == 0 or math.lcm(every, options["save_step"]) <= steps
    return {
        "such step": _on(given, "health_step") if options["health_step"] > steps else [],
        "checkpoint at such a step": [] if kept else _on(given, "keep_every"),
    }


def _whys(rule: str | None, optimizer: str | None, schedule: str | None, has_head: bool) -> dict[str, tuple[str, ...]]:
    """Why nothing may depend on options -> these options."""
    rule = f"--parameterization {rule}"
    return {
        f"{rule} starts the head by itself" if has_head else "the head is the token table": ("head_init_std",),
        f"{rule} starts the table by itself": ("embedding_init_std",),
        "a later start is given, too": ("ortho_init", "diag_init"),
        "--max_tokens is given": ("param_count", "count_embeddings"),
        "nothing is decayed": ("independent_weight_decay", "cautious_weight_decay"),
        f"{rule}, --optimizer {optimizer}": ("base_hps.weight_decay",),
        f"--schedule {schedule}": ("base_hps.min_lr_mult",),
        "--decay_tokens is given": ("decay_fraction",) if schedule in ("wsd", "wsd_s") else (),
        "there is one decay": ("lower_peaks",),
        "no warm-up": ("base_hps.warmup_tokens",),
        "no such parameters": ("base_hps.weight_lr_scale", "base_hps.vector_lr_scale", "base_hps.w_init_scale"),
        f"--optimizer {optimizer}": CONSTANTS,
    }


def _on(given: Mapping[str, Any], *options: str) -> list[str]:
    """Those that were given, but for what switches off what is not there."""
    return [option for option in options if given.get(option) not in (None, False, "none")]


def _no(lacking: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    return {f"no {what}": options for what, options in lacking.items()}


def _note(begins: str, whys: Mapping[str, list[str]]) -> tuple[str, ...]:
    parts = [f"{', '.join(f'--{option}' for option in options)} ({why})" for why, options in whys.items() if options]
    return (f"{begins} {', '.join(parts)}",) if parts else ()


def _rates_and_starts(plan: Plan, facts: OptimizerFacts) -> tuple[Any, ...]:
    """Budget, rates, decays, constants and starts as they act: the same in Plans that differ in what nothing reads.

    Steps are compared at PARTS even places of the run, and at ever smaller parts of it from both its ends, where
    warm-ups and decays are.
    """
    present = {name: role for name, role in plan.roles.items() if plan.counts.get(name)}
    even, halves = [k / PARTS for k in range(PARTS)], [0.5**k for k in range(1, PARTS)]
    at = [int(plan.tokens * share) for share in (*even, *halves, *(1 - half for half in halves))]

    def of_step(tokens: int) -> tuple[Any, ...]:
        values = step_values(plan, min(tokens, plan.tokens - 1), plan.context)
        momentum = values.momentum if facts.plan_momentum else None
        rates = [
            (values.lr[name], values.weight_decay[name], _constants(plan, facts, values, name)) for name in present
        ]
        return values.batch_tokens, momentum, rates

    starts = {name: role.init for name, role in present.items() if name not in FILLED}
    cautious = plan.cautious_weight_decay and any(role.weight_decay for role in present.values())
    return plan.tokens, [of_step(tokens) for tokens in at], starts, plan.multipliers, cautious


def _constants(plan: Plan, facts: OptimizerFacts, values: StepValues, name: str) -> list[float]:
    """Adam's constants of a step that the optimizer takes from the Plan for a role."""
    role, (beta1, beta2) = plan.roles[name], values.betas[name]
    own = facts.constants(name, role, plan.optimizer_args)
    planned = {"beta1": beta1, "beta2": beta2, "eps": values.eps * role.eps_factor}
    return [value for key, value in planned.items() if own.get(key, 0.0) is None]
