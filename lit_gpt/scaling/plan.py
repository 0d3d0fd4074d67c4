"""RunConfig + models + rule -> Plan, and the tables a person reads.

The chain, each factor from one file: base value -> batch rule (batch_rules.py) -> scaling rule
(sp, mup, mupp, super_mup, ...) -> `weight_lr_scale` on matrices -> peak learning rate and
decay per role. Batch ramp-up walks the same chain with the batch of the moment, so depth
and token factors stay (ArchScale loses them, docs/departures.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.config.words import read_ends, write_tokens
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES, Fork, Init, Phase, Plan, RolePlan, Schedule, Situation, Transfer
from lit_gpt.scaling.batch_rules import batch_factors
from lit_gpt.scaling.budget import (
    DEFAULT_WARMUP,
    analytic_parameters,
    default_batch,
    default_warmup,
    ramped_batch,
    round_batch,
    token_budget,
)
from lit_gpt.scaling.decay import base_decay, check_decay, shrink_per_step
from lit_gpt.scaling.optimizer_facts import OptimizerFacts
from lit_gpt.scaling.rules import RULES, super_mup
from lit_gpt.scaling.schedule import constant_end, fraction, period_end, plan_decays

LARGEST_BUDGET = 10**16  # as --max_tokens is bounded
SCALED_BY_W_INIT = ("matrix", "expert", "router", "head")


@dataclass(frozen=True)
class Counted:
    """A model description with its exact counts (made on the meta device).

    parameters: role or kind -> count, with keys total, active, embedding, head.
    flops_per_token: forward and backward at the training context. palm_flops_per_token: by PaLM's convention.
    """

    config: ModelConfig
    parameters: dict[str, int]
    flops_per_token: float = 0.0
    palm_flops_per_token: float = 0.0

    def budget_parameters(self, param_count: str, embeddings: bool | None) -> float:
        """What the token budget counts: exact or analytic (--param_count), with or without embeddings."""
        if param_count == "analytic":
            return analytic_parameters(self.config, bool(embeddings))
        tables = self.parameters["embedding"] + self.parameters["head"]
        return self.parameters["active"] - (0 if embeddings else tables)


def build_plan(
    run: RunConfig, facts: OptimizerFacts, model: Counted, base: Counted, ranks: int, fork: Fork | None = None
) -> Plan:
    """The Plan of a resolved run (config/resolve.py) on `ranks` processes.

    facts: of the run's optimizer. base: the same family at base_hps.d0, the model the hyper-parameters were tuned on.
    fork: where the run goes on from another one. Raises UserError for budgets and batches that cannot be.
    """
    hps, config = run.base_hps, model.config
    sizes = (counted.budget_parameters(run.param_count, run.count_embeddings) for counted in (model, base))
    chinchilla, length = token_budget(hps.t0, *sizes), None if run.decay_tokens is None else int(run.decay_tokens)
    ends = _budgets(run.decay_at, run.max_tokens, chinchilla, fork.tokens + length if fork and length else chinchilla)
    tokens, done = ends[-1], fork.tokens if fork else 0
    multiple = ranks * run.micro_bsz * config.block_size
    if run.total_bsz is None:
        hps = replace(hps, b0=default_batch(hps.b0, tokens, multiple))
        run = replace(run, base_hps=hps)
    batch = round_batch(run.total_bsz or hps.b0, multiple)
    if tokens <= done:
        raise UserError(
            f"The budget of {tokens:,} tokens counts from the start of the run that is forked, which has trained on "
            f"{done:,} of them. Give a larger --max_tokens, or --decay_tokens N to decay over N more."
        )
    if tokens < batch:
        raise UserError(f"--max_tokens {tokens:,} is less than one batch of {batch:,} tokens.")

    def of_budget(tokens: int) -> tuple[Transfer, dict[str, RolePlan], float]:
        transfer = transfer_of(run, facts, config, base.config, tokens)
        roles = _roles(run, facts, transfer, batch, tokens, model.parameters["active"])
        proportional = transfer.warmup == "proportional"
        starts_full = run.midtrain or run.schedule == "none"
        return transfer, roles, 0.0 if starts_full else _warmup(hps, facts, proportional, tokens, ends[0])

    transfer, roles, warmup = of_budget(tokens)
    if any(of_budget(end)[1:] != (roles, warmup) for end in ends):
        rule = f"--parameterization {run.parameterization} and --weight_decay_rule {run.weight_decay_rule}"
        raise UserError(
            f"--schedule wsd_s trains all its budgets at one rate, and under {rule} each budget has "
            "rates, decay or warm-up of its own. Train one run with --schedule constant, and decay in forks of it: "
            "--fork_from RUN --decay_tokens N, whose Plans have their own."
        )
    present = {name: role for name, role in roles.items() if model.parameters.get(name)}
    check_decay(run, facts, any(role.weight_decay for role in present.values()))
    _check_starts(run.optimizer, facts, present)
    factors = batch_factors(run.batch_rule, batch / hps.b0, hps.beta2)
    ramp = run.bramp_ratio or 1
    batch_factors(run.batch_rule, ramp * batch / hps.b0, hps.beta2)  # refuse now what would fail in mid-run
    return Plan(
        family=config.family,
        depth=config.depth,
        rule=run.parameterization or "sp",
        batch_rule=run.batch_rule,
        optimizer=run.optimizer or "adamw",
        tokens=tokens,
        batch_tokens=batch,
        context=config.block_size,
        steps=-(-(tokens - done) // batch) + (fork.step if fork else 0),
        batch_ramp=ramp,
        schedule=Schedule(
            run.schedule or "linear",
            warmup,
            tokens,
            hps.min_lr_mult,
            run.decay or "linear",
            run.decay_fraction,
            plan_decays(ends, warmup, length, run.decay_fraction, run.lower_peaks, ramp * batch)
            if run.schedule == "wsd_s" or (run.schedule == "wsd" and length)
            else (),
            constant_end(int(run.cos_inf_tokens or 0), tokens, warmup),
        ),
        roles=roles,
        multipliers=transfer.multipliers,
        beta1=hps.beta1,
        beta2=factors.beta2,
        eps=hps.eps * factors.eps,
        scheduled_betas=transfer.scheduled_betas,
        independent_weight_decay=bool(run.independent_weight_decay),
        grad_clip=run.grad_clip,
        label_smoothing=run.label_smoothing or 0.0,
        seed=run.seed,
        counts=model.parameters,
        model_flops_per_token=model.flops_per_token,
        base_batch_tokens=hps.b0,
        base_beta2=hps.beta2,
        momentum=hps.muon_beta,
        cautious_weight_decay=run.cautious_weight_decay,
        optimizer_args=run.optimizer_args or {},
        fork=fork,
        ema=sorted({int(half_life) for half_life in run.ema}),
        grad_clip_type=run.grad_clip_type,
    )


def _budgets(decay_at: Sequence[str], max_tokens: float | None, chinchilla: int, default: int) -> list[int]:
    """The tokens after which each decay of wsd_s ends, the last of which is the budget; of other schedules the budget.

    decay_at, max_tokens: the options. chinchilla: 1x. Raises UserError where these ends do not rise, or end elsewhere.
    """
    if not decay_at:
        return [default if max_tokens is None else int(max_tokens)]
    try:
        ends = read_ends(decay_at, chinchilla)
    except ValueError as error:
        given = ",".join(decay_at)
        raise UserError(f"--decay_at {given} does not rise, since 1x is {chinchilla:,} tokens here.") from error
    if ends[-1] > LARGEST_BUDGET:
        raise UserError(f"The last decay ends at {ends[-1]:.3g} tokens; it must be at most {LARGEST_BUDGET:.3g}.")
    if max_tokens is not None and int(max_tokens) != ends[-1]:
        raise UserError(f"The last decay ends at {ends[-1]:,} tokens, which is the budget. Drop --max_tokens.")
    return ends


def transfer_of(run: RunConfig, facts: OptimizerFacts, model: ModelConfig, base: ModelConfig, tokens: int) -> Transfer:
    """What the rule says of this model, with the flags that change it: the matrix initialiser, and depth_scale."""
    hps = run.base_hps
    situation = Situation(
        depth=model.depth,
        base_depth=hps.d0,
        width=model.n_embd,
        base_width=base.n_embd,
        head_dim=model.head_dim,
        base_head_dim=hps.hd0,
        tokens=tokens,
        base_tokens=hps.t0,
        tied=model.tie_embeddings,
        head_init_std=run.head_init_std or None,  # a std of 0 is a start at zero, too
        head_start=run.head_start,
        init_std=0.02 if run.init_std is None else run.init_std,
        steps=facts.steps_with(run.optimizer or "adamw", run.optimizer_args or {}),
    )
    rule = RULES.load(run.parameterization or "sp")
    transfer = rule.transfer(situation)
    if not isinstance(transfer, Transfer):  # a plugin's mistake
        raise UserError(
            f"transfer of the rule {run.parameterization!r} returned {type(transfer).__name__}; return a Transfer."
        )
    if run.init_std is not None and rule.transfer(replace(situation, init_std=2 * situation.init_std)) == transfer:
        raise UserError(
            f"--init_std acts where weights start from N(0, 0.02), and --parameterization {run.parameterization} has a "
            "start of its own. Drop it, or give --base_hps.w_init_scale."
        )
    chosen = {"orthogonal": run.ortho_init, "identity": run.diag_init, "fan_max_normal": run.maxfan_init}
    if kinds := [kind for kind, on in chosen.items() if on]:  # the last one wins, as in ArchScale
        # A depthwise kernel has no main diagonal and is no rotation: it keeps the rule's start (departure D22).
        roles = ("matrix", "expert", "conv") if kinds[-1] == "fan_max_normal" else ("matrix", "expert")
        own = dict.fromkeys(roles, Init(kinds[-1]))  # type: ignore[arg-type]
        transfer = replace(transfer, init={**transfer.init, **own})
    if run.depth_scale:
        transfer = replace(transfer, multipliers=replace(transfer.multipliers, residual=(2 * run.depth) ** -0.5))
    return transfer


def _warmup(hps: BaseHyperparameters, facts: OptimizerFacts, proportional: bool, tokens: int, first: int) -> float:
    """Tokens of the warm-up. proportional: to the budget, as some rules transfer it; else the same at any budget.

    first: where the first decay ends; a warm-up that nobody gave is short enough for it. Where the length of a step
    does not depend on its gradient (the Muon family), the start is at full rate, as in ArchScale.
    Raises UserError for a warm-up that is as long as the budget of `tokens` tokens.
    """
    default = 0.0 if facts.steps != "adam" else DEFAULT_WARMUP if proportional else default_warmup(first)
    warmup = default if hps.warmup_tokens is None else hps.warmup_tokens
    if proportional:
        warmup = warmup / hps.t0 * tokens
    if warmup >= tokens:
        raise UserError(
            f"Warm-up of {warmup:,.0f} tokens does not fit in a budget of {tokens:,} tokens. "
            "Lower --base_hps.warmup_tokens or raise --max_tokens."
        )
    return warmup


def small_budget(hps: BaseHyperparameters, plan: Plan) -> tuple[str, ...]:
    """A note about the defaults that are smaller because the budget is, () where none is. hps: as they were given."""
    warmup, parts = plan.schedule.warmup_tokens, list[str]()
    if hps.warmup_tokens is None and 0 < warmup < DEFAULT_WARMUP:
        parts.append(f"a warm-up of {warmup:,.0f} tokens, not {DEFAULT_WARMUP:.0e} (--base_hps.warmup_tokens)")
    if plan.base_batch_tokens < hps.b0:
        parts.append(f"a batch of {plan.batch_tokens:,} tokens, not {hps.b0:,} (--total_bsz)")
    return (f"defaults for so small a budget: {' and '.join(parts)}",) if parts else ()


def _roles(
    run: RunConfig, facts: OptimizerFacts, transfer: Transfer, batch: int, tokens: int, parameters: int
) -> dict[str, RolePlan]:
    """Peak rate, decay, start and update rule of every role; parameters: the active ones, embeddings included."""
    hps = run.base_hps
    factors = batch_factors(run.batch_rule, batch / hps.b0, hps.beta2)
    base = base_decay(hps.weight_decay, facts, bool(run.independent_weight_decay))
    decays = transfer.independent_decay if run.independent_weight_decay else None
    decays = transfer.weight_decay if decays is None else decays
    roles = {}
    for name in LEARNED_ROLES:
        init = transfer.init.get(name, Init("zeros"))
        if name in SCALED_BY_W_INIT:
            init = replace(init, gain=hps.w_init_scale)
        lr = hps.eta0 * factors.lr * transfer.lr[name]
        if name in HIDDEN:
            lr *= hps.weight_lr_scale
        elif name == "vector":
            lr *= hps.vector_lr_scale
        rule = facts.rule(name)
        shrink = base * factors.weight_decay * decays[name]
        if run.weight_decay_rule == "power_lines" and decays[name]:
            shrink = shrink_per_step(batch, tokens, parameters) / (1.0 if run.independent_weight_decay else lr)
        shrink = 0.0 if rule.holds_norm else shrink
        roles[name] = RolePlan(lr, shrink, init, rule.name, transfer.eps.get(name, 1.0))
    return roles


def _check_starts(optimizer: str | None, facts: OptimizerFacts, roles: dict[str, RolePlan]) -> None:
    """Raise UserError where a sphere would hold weights at zero for good."""
    for name, r in roles.items():
        if facts.rule(name).keeps_start and (r.init.kind == "zeros" or r.init.gain == 0):
            raise UserError(
                f"{optimizer} keeps the norm that weights start with, and the {name} would start at zero and never "
                "move. Give --head_init_std 0.02 (and --base_hps.w_init_scale 1), or another optimizer, such as muon."
            )


@dataclass(frozen=True)
class StepValues:
    """Hyper-parameters of one optimizer step."""

    batch_tokens: int
    lr: dict[str, float]
    weight_decay: dict[str, float]
    betas: dict[str, tuple[float, float]]
    eps: float


def step_values(plan: Plan, tokens_seen: int, multiple: int) -> StepValues:
    """What step to take after `tokens_seen` tokens.

    multiple: tokens that all ranks process in one micro-batch; the ramped batch is a
    multiple of it. The learning rate is the schedule's value at the middle of the step's part
    of the budget, so neither the first step of a warm-up nor the last step of a decay to
    zero is wasted.
    """
    batch = plan.batch_tokens
    lr = {name: r.lr for name, r in plan.roles.items()}
    decay = {name: r.weight_decay for name, r in plan.roles.items()}
    beta2, eps = plan.beta2, plan.eps
    if plan.batch_ramp != 1:
        batch = ramped_batch(tokens_seen, plan.tokens, plan.batch_tokens, plan.batch_ramp, multiple)
        first = batch_factors(plan.batch_rule, plan.batch_tokens / plan.base_batch_tokens, plan.base_beta2)
        now = batch_factors(plan.batch_rule, batch / plan.base_batch_tokens, plan.base_beta2)
        lr = {name: value * now.lr / first.lr for name, value in lr.items()}
        decay = {name: value * now.weight_decay / first.weight_decay for name, value in decay.items()}
        beta2, eps = now.beta2, eps * now.eps / first.eps
    at = fraction(plan.schedule, tokens_seen + min(batch, period_end(plan.schedule, tokens_seen) - tokens_seen) / 2)
    betas = dict.fromkeys(plan.roles, (plan.beta1, beta2))
    if plan.scheduled_betas:  # of the decayed roles only
        betas |= {name: super_mup.betas(at) for name, value in decay.items() if value > 0}
    if plan.independent_weight_decay:  # the optimizer multiplies by its learning rate: undo that
        decay = {name: value / lr[name] if lr[name] else 0.0 for name, value in decay.items()}
    scheduled = {name: value * at for name, value in lr.items()}
    return StepValues(batch, scheduled, decay, betas, eps)


def ema_decay(tokens: int, half_life: int) -> float:
    """The share that an average of the weights keeps of itself in a step of `tokens` tokens (arXiv:2307.13813).

    It follows the batch: to the power of the ratio of two batches, the decay of the one is that of the other.
    """
    return 0.5 ** (tokens / half_life)


def count_steps(plan: Plan, multiple: int) -> int:
    """Optimizer steps of a run. multiple: see step_values; under ramp-up the count depends on it a little."""
    if plan.batch_ramp == 1:
        return plan.steps
    steps, tokens = (plan.fork.step, plan.fork.tokens) if plan.fork else (0, 0)
    while tokens < plan.tokens:
        tokens += ramped_batch(tokens, plan.tokens, plan.batch_tokens, plan.batch_ramp, multiple)
        steps += 1
    return steps


def unaffected(old: Plan, new: Plan, tokens: int, multiple: int) -> bool:
    """Whether `tokens` tokens were trained under `old` just as they would have been under `new`.

    So it is where the Plans differ in their budget alone, and every step so far has the same values. multiple: see
    step_values.
    """
    if old == new:  # an ordinary resume, whose steps may be a million
        return True
    s, t = old.schedule, new.schedule
    budget = {"tokens": new.tokens, "steps": new.steps}
    schedule = replace(s, total_tokens=t.total_tokens, decays=t.decays)
    if replace(old, schedule=schedule, **budget) != new or bool(s.decays) != bool(t.decays) or tokens > new.tokens:
        return False
    seen = new.fork.tokens if new.fork else 0
    while seen < tokens:
        values = step_values(old, seen, multiple)
        if values != step_values(new, seen, multiple):
            return False
        seen += values.batch_tokens
    return True


def difference(a: Any, b: Any, path: str = "") -> list[str]:
    """Lines "key: a -> b" for every leaf in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        nested = (difference(a.get(k), b.get(k), f"{path}.{k}" if path else str(k)) for k in keys)
        return [line for lines in nested for line in lines]
    return [] if a == b else [f"{path}: {a} -> {b}"]


def describe(plan: Plan, facts: OptimizerFacts | None) -> str:
    """The Plan as the table that --dry_run prints.

    facts: of its optimizer; None for an optimizer that is not here any more, whose own constants nobody knows.
    """
    counts = ", ".join(f"{k} {v:,}" for k, v in plan.counts.items() if v)
    s, m, ramps = plan.schedule, plan.multipliers, plan.batch_ramp != 1
    wide = max(9, *(len(r.update_rule) for r in plan.roles.values()))
    attention = "1/sqrt(head_dim)" if m.attention is None else f"{m.attention:.6g}"
    lines = [
        f"model        {plan.family} d{plan.depth}, context {plan.context:,}",
        f"parameters   {counts}",
        f"flops        {plan.model_flops_per_token:.4g} per token (forward and backward), "
        f"{plan.model_flops_per_token * plan.tokens:.4g} in all",
        f"rule         {plan.rule}, batch rule {plan.batch_rule}, optimizer {plan.optimizer}",
        f"tokens       {plan.tokens:,} in {'at most ' * ramps}{plan.steps:,} steps of {plan.batch_tokens:,}"
        + f", batch ramps to x{plan.batch_ramp}" * ramps,
        *_describe_curriculum(plan.curriculum),
        f"schedule     {s.name}{_describe_decays(s)}, warm-up {s.warmup_tokens:,.0f} tokens, "
        f"final fraction {s.final:g}",
        f"adam         {_describe_constants(plan, facts)}"
        + (f"; muon momentum {plan.momentum:g}" if facts is not None and facts.plan_momentum else ""),
        f"multipliers  logits {m.logit:.6g}, branches {m.residual:.6g}, softmax scale {attention}",
        f"other        grad clip {plan.grad_clip:g}{_describe_clip(plan)}, label smoothing {plan.label_smoothing:g}, "
        f"seed {plan.seed}"
        + (", independent weight decay" if plan.independent_weight_decay else "")
        + (", cautious weight decay" if plan.cautious_weight_decay else ""),
        *(_describe_fork(plan.fork) if plan.fork else ()),
        *([f"averages     {_describe_averages(plan)}"] if plan.ema else []),
        *([f"memory       {_describe_memory(plan.memory)}"] if plan.memory else []),
        "",
        f"{'role':<10} {'peak lr':>12} {'weight decay':>13}  {'update':<{wide}} initial weights",
    ]
    for name, r in plan.roles.items():
        if plan.counts.get(name):
            row = f"{name:<10} {r.lr:>12.6g} {r.weight_decay:>13.6g}  {r.update_rule:<{wide}}"
            lines.append(f"{row} {_describe_init(name, r.init)}")
    return "\n".join(lines)


def _describe_curriculum(phases: list[Phase]) -> list[str]:
    """A line for each phase: from which token on, and the share of every source."""
    lines = []
    for n, phase in enumerate(phases):
        total = math.fsum(phase["weights"].values())
        shares = (f"{name} {weight / total:.4g}" for name, weight in phase["weights"].items())
        lines.append(f"{'' if n else 'curriculum':<12} from {phase['from_tokens']:,}: {', '.join(shares)}")
    return lines


def _describe_constants(plan: Plan, facts: OptimizerFacts | None) -> str:
    """Betas and eps: the Plan's where AdamW trains a role, and those of the optimizer where they differ."""
    args = {k: v for k, v in plan.optimizer_args.items() if _numbers(v)}
    betas, eps = (facts or OptimizerFacts({})).constants(args, (plan.beta1, plan.beta2), plan.eps)
    own = {**{f"beta{i}": b for i, b in enumerate(betas, 1)}, "eps": eps}
    planned = {"beta1": plan.beta1, "beta2": plan.beta2, "eps": plan.eps}
    differ = {k: v for k, v in own.items() if planned.get(k) != v}
    adamw = any(r.update_rule == "adamw" for r in plan.roles.values())
    text = _join(planned if adamw else own)
    if plan.scheduled_betas and (adamw or betas[:2] == (plan.beta1, plan.beta2)):
        text += ", betas follow the schedule"
    return text + (f"; {plan.optimizer} has {_join(differ)}" if adamw and differ else "")


def _describe_clip(plan: Plan) -> str:
    """What the limit on gradients is of, where it is not of all of them together."""
    what = {"global": "", "local": " of each tensor", "elementwise": " of each entry"}
    return what[plan.grad_clip_type] if plan.grad_clip else ""


def _describe_decays(s: Schedule) -> str:
    """How the rate of a WSD schedule comes down."""
    if s.decays:
        spans = (f"{d.start:,} to {d.end:,}" + f" from x{d.peak:.3g}" * (d.peak != 1) for d in s.decays)
        return f", {s.decay} decay over tokens {'; '.join(spans)}"
    if s.constant_end:
        return f", constant for the last {s.constant_end:,} tokens"
    return f", {s.decay} decay over the last {s.decay_fraction:.3g}" if s.name == "wsd" else ""


def _describe_fork(fork: Fork) -> list[str]:
    """Where a run comes from, and what it keeps of it."""
    fresh = "; ".join(f"that of {role} starts anew ({why})" for role, why in fork.fresh.items())
    return [
        f"fork         of {fork.path}, after {fork.tokens:,} tokens and {fork.step:,} steps",
        *(f"             which is a fork of {parent}" for parent in reversed(fork.parents)),
        f"             optimizer state is kept{', but ' + fresh if fresh else ''}; {fork.data}",
    ]


def _join(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def _numbers(value: Any) -> bool:
    """Whether a given argument can be printed as a number or several; optim.build refuses it otherwise."""
    return all(isinstance(v, (int, float)) for v in (value if isinstance(value, (list, tuple)) else [value]))


def _describe_averages(plan: Plan) -> str:
    names = " and ".join(map(write_tokens, plan.ema))
    decays = " and ".join(f"{ema_decay(plan.batch_tokens, half_life):.6g}" for half_life in plan.ema)
    half_lives = "half-lives" if len(plan.ema) > 1 else "a half-life"
    return f"EMA with {half_lives} of {names} tokens (decay {decays} per step of {plan.batch_tokens:,})"


def _describe_memory(memory: dict[str, int]) -> str:
    parts = " + ".join(f"{name} {size / 2**30:.3g}" for name, size in memory.items() if size)
    missing = [name for name in ("optimizer", "activations") if name not in memory]
    unknown = f" + {' and '.join(missing)}, which cannot be told here" if missing else ""
    return f"about {sum(memory.values()) / 2**30:.3g} GiB per GPU = {parts}{unknown} (estimated)"


def _describe_init(name: str, init: Init) -> str:
    if name == "vector":
        return "gains 1, biases 0 (each module's own)"
    text = {
        "normal": f"N(0, {init.std:g})",
        "fan_in_uniform": "U(+-1/sqrt(fan_in))",
        "fan_max_normal": "N(0, 1/sqrt(max(fan_in, fan_out)))",
    }.get(init.kind, init.kind)
    return text if init.gain == 1 else f"{init.gain:g} x {text}"
