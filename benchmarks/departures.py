"""Is docs/departures.md complete? Plans of ArchScale's formulas beside the Plans of this project, field by field.

    python benchmarks/departures.py
    python benchmarks/departures.py --train_name scaling_mup_muonh --family sambay --depth 16

Without options it goes through families, depths 8, 16 and 24, and names, and fails where a field differs and no
numbered departure says so, where one says another value, where one changes nothing anywhere, and where the page's sizes
are not what the formulas give. With options it prints both Plans of one command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from typing import Any

from archscale import ALL, COUNT, VOCABULARY, Case, plan

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.explain import one_line
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.scaling.plan import Counted, build_plan


def main(train_name: str | None = None, family: str = "transformer", depth: int = 16) -> int:
    """Check the page, or print both Plans of one command.

    Args:
        train_name: a name to print both Plans of.
        family: its family, one of FAMILIES.
        depth: its depth.
    """
    if train_name is None:
        problems = check()
        print("\n".join(problems))
        return 1 if problems else 0
    case = Case(train_name, family, depth)
    explained, wrong = explanations(case)
    theirs, here = plan(case), ours(case)
    print(f"{'field':<34}{'ArchScale':>28}{'here':>28}  departures")
    for key, value in here.items():
        why = ", ".join(f"D{n}" for n in explained.get(key, ()))
        print(f"{key:<34}{theirs[key]!s:>28}{value!s:>28}  {why}")
    print("\n".join(wrong))
    return 1 if wrong else 0


answer_early(__name__, reader_of(main))

from lit_gpt.optim import OPTIMIZERS
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import base_config, model_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "departures.md"
COUNTED: dict[str, dict[str, int]] = {}  # by shape: parameters
FAMILIES = ("transformer", "sambay", "transformer_gqa4_w8", "transformer_gqa4_h2_moe")
DEPTHS = (8, 16, 24)
NAMES = (
    "scaling",
    "scaling_mup",
    "scaling_mup_tie_rbase_prolong_varlen",
    "scaling_ori_mup",
    "scaling_super_mup",
    "scaling_dsca_run",
    "v2scale_mup",
    "scaling_mup_muon",
    "v2scale_mup_muon",
    "scaling_ori_mup_muon",
    "scaling_muon",
    "scaling_mup_hadam",
    "scaling_mup_muonball",
    "v2scale_mup_muonh_ga_qknorm_sgate_shexp",
    "scaling_mup_wsd",
    "scaling_mup_wsd_cosine_ls_run",
    "scaling_mup_cosine_midtrain",
)
# Options of single commands, each for every family at depth 16.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"train_name": "scaling_mup", "ar": 64},
    {"train_name": "v2scale_mup_muonh", "ar": 64},
    {"train_name": "scaling_mup", "ctx_len": 8192, "ranks": 3},
    {"train_name": "scaling_mup", "ranks": 3, "total_bsz": 2**22, "max_tokens": 3e11},
    {"train_name": "scaling_mup_muon", "hps": {"warmup_tokens": 5e8, "eps": 1e-10}},
    {"train_name": "scaling_mup", "hps": {"weight_lr_scale": 2.0, "w_init_scale": 3.0, "min_lr_mult": 0.1, "d0": 16}},
    {"train_name": "scaling_mup_hadam", "hps": {"weight_lr_scale": 2.0}},
    {"train_name": "scaling_muonball", "hps": {"weight_decay": 0.2}},
    {"train_name": "v2scale_mup_muonh", "hps": {"t0": 10.4e9, "eta0": 0.016, "weight_decay": 0.2, "beta1": 0.8}},
    {"train_name": "scaling_mup", "sparsity": 32, "top_k": 4, "hps": {"hd0": 64}},
)
# Family, name and base budget of the rows of the page's table.
BUDGETS = (
    ("transformer", "scaling_mup", 9.5e9),
    ("sambay", "scaling_mup", 9.5e9),
    ("transformer_gqa4_w8", "scaling_mup", 9.5e9),
    ("transformer_gqa4_w8", "v2scale_mup", 10.4e9),
    ("transformer_gqa4_h2_moe", "v2scale_mup_muonh", 10.4e9),
)


def cases() -> Iterator[Case]:
    """All that is compared."""
    for family in FAMILIES:
        yield from (Case(name, family, depth) for name in NAMES for depth in DEPTHS)
        yield from (Case(family=family, depth=16, **options) for options in OPTIONS)


def run_of(case: Case) -> RunConfig:
    """What the command line of a case means."""
    experts: dict[str, Any] = {"sparsity": case.sparsity, "top_k": case.top_k} if case.experts else {}
    typed = RunConfig(
        train_name=case.train_name,
        train_model=case.family,
        depth=case.depth,
        ar=case.ar,
        ctx_len=case.ctx_len,
        micro_bsz=case.micro_bsz,
        total_bsz=case.total_bsz,
        max_tokens=case.max_tokens,
        vocab_size=VOCABULARY,
        base_hps=BaseHyperparameters(**case.hps),
        **experts,
    )
    return resolve(typed)[0]


def ours(case: Case) -> dict[str, Any]:
    """The fields of archscale.plan as this project's Plan has them, of the roles that the model has."""
    run = run_of(case)
    model, base = (_counted(config) for config in (model_config(run, run.depth, run.ar), base_config(run)))
    p = build_plan(run, OPTIMIZERS.facts(run.optimizer or "adamw"), model, base, case.ranks)
    roles = {name: role for name, role in p.roles.items() if p.counts.get(name)}
    hidden = [role for name, role in roles.items() if name in ("matrix", "expert", "router")]
    rest = [role for name, role in roles.items() if name not in ("matrix", "expert", "router")]
    tables = [role for name, role in roles.items() if name in ("embedding", "vector", "conv")]
    vectors = [role for name, role in roles.items() if name in ("vector", "conv")]
    inits = {name: role.init for name, role in roles.items()}
    starts = {name: (i.kind, i.std if i.kind == "normal" else 0.0, i.gain) for name, i in inits.items()}
    fields = {
        "parameters": model.budget_parameters(run.param_count, run.count_embeddings),
        "base parameters": base.budget_parameters(run.param_count, run.count_embeddings),
        "tokens": p.tokens,
        "batch": p.batch_tokens,
        "steps": p.steps,
        "warm-up": p.schedule.warmup_tokens,
        "rate of embedding, head, vectors": _one(role.lr for role in rest),
        "rate of matrices": _one(role.lr for role in hidden),
        "decay of embedding, vectors": _one(role.weight_decay for role in tables),
        "decay of matrices": _one(role.weight_decay for role in hidden),
        "independent decay": p.independent_weight_decay,
        "betas": (p.beta1, p.beta2),
        "betas follow the schedule": p.scheduled_betas,
        "momentum": p.momentum,
        "eps": p.eps,
        "schedule": (p.schedule.name, p.schedule.decay, p.schedule.decay_fraction),
        "final rate": p.schedule.final,
        "label smoothing": p.label_smoothing,
        "largest gradient norm": p.grad_clip,
        "context": p.context,
        "method of matrices": _one(role.update_rule for role in hidden),
        "method of vectors": _one(role.update_rule for role in vectors),
        "method of embedding": roles["embedding"].update_rule,
        "logits times": p.multipliers.logit,
        "branches times": p.multipliers.residual,
        "softmax scale": p.multipliers.attention or model.config.head_dim**-0.5,
        "start of embedding": starts["embedding"],
        "start of matrices": starts["matrix"],
        "start of projections": starts["matrix"],
    }
    if "head" in roles:
        fields |= {"decay of head": roles["head"].weight_decay, "method of head": roles["head"].update_rule}
    if case.experts:
        fields["router logits times"] = p.multipliers.router
    named = {"head": "head", "expert": "experts", "router": "routers", "conv": "convolutions"}
    return fields | {f"start of {named[name]}": start for name, start in starts.items() if name in named}


def _one(values: Iterator[Any]) -> Any:
    """What several roles have in common; all of it where they do not agree."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else tuple(distinct)


def _counted(config: ModelConfig) -> Counted:
    """`count`, once per shape: the base of one run is the model of another."""
    key = repr(config.replace(rope_base=1.0, varlen=False, block_size=1))
    if key not in COUNTED:
        COUNTED[key] = count(meta_model(config)).parameters
    return Counted(config, COUNTED[key])


def same(a: Any, b: Any) -> bool:
    """Equal; numbers up to the rounding of a few products."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if float in (type(a), type(b)) and isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
    return a == b


def explanations(case: Case) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Field that differs -> the departures that change it; and fields that differ from what the departures say."""
    theirs, expected, found = plan(case), plan(case, ALL), ours(case)
    without = {number: plan(case, ALL - {number}) for number in ALL}
    alone = {number: plan(case, {number}) for number in ALL}
    explained, wrong = {}, []
    for key, value in found.items():
        acting = [n for n in ALL if not (same(without[n][key], expected[key]) and same(alone[n][key], theirs[key]))]
        if not same(value, expected[key]):
            wrong.append(f"{key}: ArchScale {theirs[key]}, with the departures {expected[key]}, here {value}")
        elif not same(value, theirs[key]):
            explained[key] = tuple(sorted(acting))
    return explained, wrong


def budgets() -> list[str]:
    """The rows of the page's table of budgets (D34): billions of tokens."""
    rows = []
    for family, name, t0 in BUDGETS:
        for depth in DEPTHS[1:]:
            case = Case(name, family, depth, hps={"t0": t0})
            theirs, here = (plan(case, chosen)["tokens"] for chosen in ((), {COUNT}))
            sizes = f"{t0 / 1e9:g}e9 | {theirs / 1e9:.1f}e9 | {here / 1e9:.1f}e9 | {here / theirs - 1:+.2%}"
            rows.append(f"  | `{family}` | `{name}` | {depth} | {sizes} |")
    return rows


def shrinking() -> str:
    """By how much ArchScale's tied muP models start smaller (D33)."""
    starts = {d: plan(Case("scaling_mup_tie_run", "transformer", d))["start of projections"][2] for d in DEPTHS}
    return ", ".join(f"{1 / gain:.2g} at d{depth}" for depth, gain in starts.items())


def numbered(page: str) -> dict[int, str]:
    """Number -> text of the page's departures. Raises AssertionError where a number is missing or twice there."""
    entries = re.split(r"^- \*\*D(\d+)\*\* ", page, flags=re.MULTILINE)[1:]
    numbers = [int(n) for n in entries[::2]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), f"numbers of {PAGE.name}: {numbers}"
    return dict(zip(numbers, entries[1::2]))


def check() -> list[str]:
    """Everything that is wrong, as lines; prints what each departure changes."""
    page = PAGE.read_text(encoding="utf-8")
    entries, acted = numbered(page), {number: set() for number in ALL}
    problems = [
        f"missing in {PAGE.name}: {row}" for row in [*budgets(), shrinking()] if one_line(row) not in one_line(page)
    ]
    compared = 0
    for case in cases():
        explained, wrong = explanations(case)
        problems += [f"{case}\n    {line}" for line in wrong]
        compared += 1
        for key, numbers in explained.items():
            for number in numbers:
                acted[number].add(key)
    marked = {n for n, text in entries.items() if "*In the Plan" in one_line(text)}
    problems += [f"D{n} is in this file or marked in {PAGE.name}, not in both" for n in sorted(marked ^ ALL)]
    problems += [f"D{n} changes no field of any Plan" for n in sorted(ALL) if not acted[n]]
    print(f"{compared} Plans compared, {len(entries)} departures, of them {len(ALL)} in the Plan:")
    for number in sorted(ALL):
        print(f"D{number:<3} {', '.join(sorted(acted[number]))}")
    return problems


if __name__ == "__main__":
    run_command(command_of(main))
