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
from lit_gpt.config.words import read_ends
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import (
    HIDDEN,
    LEARNED_ROLES,
    Fork,
    Init,
    MomentumCurve,
    Plan,
    RolePlan,
    Schedule,
    Situation,
    Transfer,
)
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
from lit_gpt.scaling.schedule import checked_ends, fraction, period_end, plan_decays
from lit_gpt.scaling.transfer_check import checked

LARGEST_BUDGET = 10**16  # as --max_tokens is bounded
# nanochat's, and much the same in modded-nanogpt, whose records found them by trial.
MOMENTUM_START, MOMENTUM_RISE_STEPS, MOMENTUM_END = 0.85, 400, 0.90
LOUD = 3.0  # size of first logits, with which the loss starts some 4 nats above a uniform guess
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
        tables = sum(self.parameters.get(role, 0) for role in ("embedding", "value_table", "head"))
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
    batch, ramp = round_batch(run.total_bsz or hps.b0, multiple), run.bramp_ratio or 1
    if tokens <= done:
        raise UserError(
            f"The budget of {tokens:,} tokens counts from the start of the run that is forked, which has trained on "
            f"{done:,} of them. Give a larger --max_tokens, or --decay_tokens N to decay over N more."
        )
    if tokens < batch:
        raise UserError(f"--max_tokens {tokens:,} is less than one batch of {batch:,} tokens.")

    def of_budget(tokens: int) -> tuple[Transfer, dict[str, RolePlan], float]:
        transfer = transfer_of(run, facts, config, base.config, tokens)
        roles = _roles(run, facts, transfer, batch, ramp, tokens, model.parameters["active"])
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
    rise = _tokens_of_steps(MOMENTUM_RISE_STEPS, tokens, batch, ramp, config.block_size)
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
        schedule=checked_ends(
            Schedule(
                run.schedule or "linear",
                warmup,
                tokens,
                hps.min_lr_mult,
                run.decay or "linear",
                run.decay_fraction,
                plan_decays(ends, warmup, length, run.decay_fraction, run.lower_peaks, ramp * batch)
                if run.schedule == "wsd_s" or (run.schedule == "wsd" and length)
                else (),
                int(run.cos_inf_tokens or 0),
            ),
            ramp * batch,
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
        data_seed=run.seed if run.data_seed is None else run.data_seed,
        counts=model.parameters,
        model_flops_per_token=model.flops_per_token,
        base_batch_tokens=hps.b0,
        base_beta2=hps.beta2,
        momentum=hps.muon_beta,
        cautious_weight_decay=run.cautious_weight_decay,
        momentum_curve=_momentum_curve(run.momentum_schedule, run.optimizer, facts, transfer, rise),
        decay_schedule=run.weight_decay_schedule or transfer.decay_schedule,
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
    """What the rule says of this model, with the flags that change it: the matrix initialiser, and depth_scale.

    Raises UserError for an --init_std that does not act, and for what the rule refuses.
    """
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
        embedding_init_std=run.embedding_init_std,
        init_std=0.02 if run.init_std is None else run.init_std,
        steps=facts.steps_with(run.optimizer or "adamw", run.optimizer_args or {}),
    )
    rule = RULES.load(run.parameterization or "sp")
    transfer = checked(run.parameterization or "sp", rule.transfer(situation))
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
    default = 0.0 if facts.steps != "adam" else default_warmup(hps.t0 if proportional else first)
    warmup = default if hps.warmup_tokens is None else hps.warmup_tokens
    if proportional:
        warmup = warmup / hps.t0 * tokens
    if warmup >= tokens:
        raise UserError(
            f"Warm-up of {warmup:,.0f} tokens does not fit in a budget of {tokens:,} tokens. "
            "Lower --base_hps.warmup_tokens or raise --max_tokens."
        )
    return warmup


def _tokens_of_steps(steps: int, total: int, batch: int, ramp: int, multiple: int) -> int:
    """Tokens of the first steps of a run, whose batch may grow; see ramped_batch."""
    tokens = 0
    for _ in range(steps):
        tokens += ramped_batch(tokens, total, batch, ramp, multiple)
    return tokens


def _momentum_curve(
    asked: str | None, optimizer: str | None, facts: OptimizerFacts, transfer: Transfer, rise_tokens: int
) -> MomentumCurve | None:
    """How the momentum of the Muon family changes. asked: --momentum_schedule. Raises UserError where it cannot act."""
    if asked == "rise_and_fall" and not facts.plan_momentum:
        raise UserError(
            f"--momentum_schedule is about Muon and its relatives, and --optimizer {optimizer} is none. Drop it."
        )
    if (asked or transfer.momentum_schedule) == "constant" or not facts.plan_momentum:
        return None
    return MomentumCurve(MOMENTUM_START, rise_tokens, MOMENTUM_END)


def small_budget(hps: BaseHyperparameters, plan: Plan) -> tuple[str, ...]:
    """A note about the defaults that are smaller because the budget is, () where none is. hps: as they were given."""
    warmup, parts = plan.schedule.warmup_tokens, list[str]()
    if hps.warmup_tokens is None and 0 < warmup < DEFAULT_WARMUP:
        parts.append(f"a warm-up of {warmup:,.0f} tokens, not {DEFAULT_WARMUP:.0e} (--base_hps.warmup_tokens)")
    if plan.base_batch_tokens < hps.b0:
        parts.append(f"a batch of {plan.batch_tokens:,} tokens, not {hps.b0:,} (--total_bsz)")
    return (f"defaults for so small a budget: {' and '.join(parts)}",) if parts else ()


def unseen_warmup(asked: float | None, plan: Plan) -> tuple[str, ...]:
    """A note where a warm-up that was asked for ends before the middle of the first step, whose rate counts; or ()."""
    warmup = plan.schedule.warmup_tokens
    if asked is None or not 0 < warmup <= plan.batch_tokens / 2:
        return ()
    return (f"a warm-up of {warmup:,.0f} tokens ends within half of the first step, so no step has it",)


def far_batch(asked: float | None, plan: Plan) -> tuple[str, ...]:
    """A note where whole micro-batches miss the batch that was asked for, in tokens, by more than a tenth; else ()."""
    if asked is None or abs(plan.batch_tokens - asked) <= 0.1 * asked:
        return ()
    return (
        f"a batch of {plan.batch_tokens:,} tokens, not {asked:,.0f}: whole micro-batches come no nearer (--micro_bsz)",
    )


def loud_start(plan: Plan, width: int) -> tuple[str, ...]:
    """A note where the output projection starts so large that the first losses are far above a uniform guess, else ().

    A normalised hidden vector has length sqrt(width), so logits start at that times the standard deviation, and the
    loss about half of its square above the guess.
    """
    role, option = ("head", "head_init_std") if plan.counts.get("head") else ("embedding", "embedding_init_std")
    init = plan.roles[role].init
    std = init.std * init.gain
    size = std * math.sqrt(width) * plan.multipliers.logit
    if init.kind != "normal" or size <= LOUD:
        return ()
    tied = ", which is the head here," * (role == "embedding")
    return (f"the {role}{tied} starts at N(0, {std:g}), so first logits are of size {size:.2g}: try --{option} 0.02",)


def _roles(
    run: RunConfig, facts: OptimizerFacts, transfer: Transfer, batch: int, ramp: int, tokens: int, parameters: int
) -> dict[str, RolePlan]:
    """Peak rate, decay, start and update rule of every role, at the first batch.

    ramp: how much larger the batch is after 5 percent of the tokens, which is the one that Power Lines is asked for.
    parameters: the active ones, embeddings included.
    """
    hps, args = run.base_hps, run.optimizer_args or {}
    factors, later = (batch_factors(run.batch_rule, k * batch / hps.b0, hps.beta2) for k in (1, ramp))
    # By how much step_values makes a decay larger until then, and the rate that multiplies it.
    grown, faster = later.weight_decay / factors.weight_decay, later.lr / factors.lr
    base = base_decay(hps.weight_decay, facts, bool(run.independent_weight_decay))
    decays = transfer.independent_decay if run.independent_weight_decay else None
    decays = transfer.weight_decay if decays is None else decays
    roles = {}
    for name in LEARNED_ROLES:
        init = transfer.init.get(name, Init("zeros"))
        if name in SCALED_BY_W_INIT:
            init = replace(init, gain=init.gain * hps.w_init_scale)
        lr = hps.eta0 * factors.lr * transfer.lr[name]
        if name in HIDDEN:
            lr *= hps.weight_lr_scale
        elif name == "vector":
            lr *= hps.vector_lr_scale
        rule = facts.rule(name)
        shrink = base * factors.weight_decay * decays[name]
        if run.weight_decay_rule == "power_lines" and decays[name]:
            shrink = shrink_per_step(ramp * batch, tokens, parameters) / grown
            shrink /= 1.0 if run.independent_weight_decay else lr * faster
        shrink = shrink if facts.decays(name, args) else 0.0
        planned = RolePlan(lr, shrink, init, rule.name, transfer.eps.get(name, 1.0), transfer.betas.get(name))
        roles[name] = facts.acting(name, planned, args)
    return roles


def _check_starts(optimizer: str | None, facts: OptimizerFacts, roles: dict[str, RolePlan]) -> None:
    """Raise UserError where a sphere would hold weights at zero for good."""
    for name, r in roles.items():
        if facts.rule(name).keeps_start and r.init.kind == "zeros":
            way = "--zero_output false" if name == "output" else "--head_init_std 0.02"
            raise UserError(
                f"{optimizer} keeps the norm that weights start with, and the {name} would start at zero and never "
                f"move. Give {way}, or another optimizer, such as muon."
            )


@dataclass(frozen=True)
class StepValues:
    """Hyper-parameters of one optimizer step. momentum: of the Muon family."""

    batch_tokens: int
    lr: dict[str, float]
    weight_decay: dict[str, float]
    betas: dict[str, tuple[float, float]]
    eps: float
    momentum: float


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
    middle = tokens_seen + min(batch, period_end(plan.schedule, tokens_seen) - tokens_seen) / 2
    at = fraction(plan.schedule, middle)
    betas = {name: r.betas or (plan.beta1, beta2) for name, r in plan.roles.items()}
    if plan.scheduled_betas:
        betas |= {name: super_mup.betas(at) for name, role in plan.roles.items() if follows_schedule(role)}
    if plan.independent_weight_decay:  # the optimizer multiplies by its learning rate: undo that
        decay = {name: value / lr[name] if lr[name] else 0.0 for name, value in decay.items()}
    if plan.decay_schedule == "cosine":
        decay = {name: value * (1 + math.cos(math.pi * middle / plan.tokens)) / 2 for name, value in decay.items()}
    scheduled = {name: value * at for name, value in lr.items()}
    return StepValues(batch, scheduled, decay, betas, eps, _momentum(plan, middle, at))


def follows_schedule(role: RolePlan) -> bool:
    """Whether scheduled betas are those of a role: of decayed ones, unless the scaling rule has betas for it."""
    return role.weight_decay > 0 and not role.betas


def _momentum(plan: Plan, tokens: float, fraction_of_peak: float) -> float:
    """Of the Muon family after so many tokens, where the rate is this fraction of its peak."""
    curve, peak = plan.momentum_curve, plan.momentum
    if curve is None:
        return peak
    rising = curve.start + (peak - curve.start) * min(tokens / curve.rise_tokens, 1.0)
    falling = curve.end + (peak - curve.end) * fraction_of_peak
    return rising if tokens < plan.schedule.warmup_tokens else min(rising, falling)


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


def run_length(plan: Plan) -> int:
    """Optimizer steps of a run, for options of optimizers that are as long as it is (OptimizerFacts.run_length).

    Under ramp-up they are counted with whole sequences, so that they are the same on any number of processes.
    """
    return count_steps(plan, plan.context)


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
