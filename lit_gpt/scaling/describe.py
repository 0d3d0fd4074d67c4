"""The table of a Plan that a person reads: what --dry_run prints."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from lit_gpt.config.words import write_tokens
from lit_gpt.scaling.base import UNDECAYED, Fork, Init, Phase, Plan, RolePlan, Schedule
from lit_gpt.scaling.optimizer_facts import OptimizerFacts
from lit_gpt.scaling.plan import ema_decay, follows_schedule


def describe(plan: Plan, facts: OptimizerFacts | None) -> str:
    """The Plan as the table that --dry_run prints.

    facts: of its optimizer; None for an optimizer that is not here any more, whose own constants nobody knows.
    """
    known = facts or OptimizerFacts({})
    present = {name: role for name, role in plan.roles.items() if plan.counts.get(name)}
    common = _most_common(
        [constants(plan, known, name, replace(r, betas=None, eps_factor=1.0)) for name, r in present.items()]
    )
    updates = {name: r.update_rule + _beside(common, constants(plan, known, name, r)) for name, r in present.items()}
    momentum = f"muon momentum {_describe_momentum(plan)}" if known.plan_momentum else ""
    adam = "; ".join(filter(None, (_join(common), _describe_betas(plan, known), momentum)))
    counts = ", ".join(f"{k} {v:,}" for k, v in plan.counts.items() if v)
    s, m, ramps = plan.schedule, plan.multipliers, plan.batch_ramp != 1
    wide, first = max([9, *map(len, updates.values())]), max([10, *map(len, present)])
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
        *([f"adam         {adam}"] if adam else []),
        f"multipliers  logits {m.logit:.6g}, branches {m.residual:.6g}, softmax scale {attention}",
        f"other        grad clip {plan.grad_clip:g}{_describe_clip(plan)}, label smoothing {plan.label_smoothing:g}, "
        f"seed {plan.seed}"
        + (f", of the data {plan.data_seed}" if plan.data_seed != plan.seed else "")
        + (", independent weight decay" if plan.independent_weight_decay else "")
        + (", cautious weight decay" if plan.cautious_weight_decay else "")
        + (", weight decay falls to 0 by a cosine" if plan.decay_schedule == "cosine" else ""),
        *(_describe_fork(plan.fork) if plan.fork else ()),
        *([f"averages     {_describe_averages(plan)}"] if plan.ema else []),
        *([f"memory       {_describe_memory(plan.memory)}"] if plan.memory else []),
        "",
        f"{'role':<{first}} {'peak lr':>12} {'weight decay':>13}  {'update':<{wide}} initial weights",
    ]
    for name, r in present.items():
        row = f"{name:<{first}} {r.lr:>12.6g} {r.weight_decay:>13.6g}  {updates[name]:<{wide}}"
        lines.append(f"{row} {_describe_init(name, r.init)}")
    return "\n".join(lines)


def constants(plan: Plan, facts: OptimizerFacts, name: str, role: RolePlan) -> dict[str, float]:
    """Adam's constants with which a role is trained at first, by name: beta1, beta2, ... and eps, as far as read."""
    beta1, beta2 = role.betas or (plan.beta1, plan.beta2)
    planned = {"beta1": beta1, "beta2": beta2, "eps": plan.eps * role.eps_factor}
    own = facts.constants(name, role, plan.optimizer_args)
    return {key: planned[key] if value is None else value for key, value in own.items()}


def _most_common(found: list[dict[str, float]]) -> dict[str, float]:
    counted = Counter(tuple(each.items()) for each in found if each)
    return dict(counted.most_common(1)[0][0]) if counted else {}


def _beside(common: dict[str, float], own: dict[str, float]) -> str:
    """What a row says after its update rule: betas and eps, where they are not those of the line above the table."""
    betas, shared = ([v for key, v in each.items() if key != "eps"] for each in (own, common))
    parts = [f"{value:g}" for value in betas] if betas != shared else []
    parts += [f"eps {own['eps']:g}"] if own.get("eps", common.get("eps")) != common.get("eps") else []
    return f" {', '.join(parts)}" if parts else ""


def _describe_betas(plan: Plan, facts: OptimizerFacts) -> str:
    """Whose betas a schedule changes."""
    roles = {
        name: facts.constants(name, r, plan.optimizer_args)
        for name, r in plan.roles.items()
        if plan.scheduled_betas and plan.counts.get(name) and follows_schedule(r)
    }
    follow = {name: [key for key in ("beta1", "beta2") if own.get(key, 0.0) is None] for name, own in roles.items()}
    whose = [name for name, betas in follow.items() if betas]
    return f"{' and '.join(follow[whose[0]])} of {', '.join(whose)} follow the schedule" if whose else ""


def _describe_curriculum(phases: list[Phase]) -> list[str]:
    """A line for each phase: from which token on, and the share of every source."""
    lines = []
    for n, phase in enumerate(phases):
        total = math.fsum(phase["weights"].values())
        shares = (f"{name} {weight / total:.4g}" for name, weight in phase["weights"].items())
        lines.append(f"{'' if n else 'curriculum':<12} from {phase['from_tokens']:,}: {', '.join(shares)}")
    return lines


def _describe_momentum(plan: Plan) -> str:
    if plan.momentum_curve is None:
        return f"{plan.momentum:g}"
    c = plan.momentum_curve
    return f"{c.start:g} to {plan.momentum:g} over {c.rise_tokens:,.0f} tokens, to {c.end:g} as the rate decays"


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
    if name in UNDECAYED:
        return "each module's own"
    text = {
        "normal": f"N(0, {init.std:g})",
        "fan_in_uniform": "U(+-1/sqrt(fan_in))",
        "fan_max_normal": "N(0, 1/sqrt(max(fan_in, fan_out)))",
    }.get(init.kind, init.kind)
    return text if init.gain == 1 else f"{init.gain:g} x {text}"
