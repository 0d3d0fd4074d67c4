"""HyperP, CompleteP, the Muon family under muP and muP++, and rules of weight decay, against hand-computed numbers.

Base values as in test_rules.py: d0 = 8, b0 = 2^21, head dim 128, width 128 d, r = 8 / d. Here eta0 = 0.016 (HyperP's)
and budgets are multiples of t0 = 10.4e9: 2^-0.32 = exp(-0.32 * 0.6931471806) = 0.8010698776, 4^-0.32 is its square
0.6417129488, and 2^0.32 = 1.2483305490.

| d | sqrt(8/d) | 0.016 sqrt(8/d) | times 2^-0.32 |
|---|---|---|---|
| 8 | 1 | 0.016 | 0.01281711804 |
| 12 | 0.8164965809 | 0.01306394529 | 0.01046513306 |
| 16 | 0.7071067812 | 0.01131370850 | 0.009063071084 |
| 20 | 0.6324555320 | 0.01011928851 | 0.008106257211 |
| 24 | 0.5773502692 | 0.009237604307 | 0.007399966552 |
"""

from __future__ import annotations

from dataclasses import replace
from math import log2
from typing import Any

import pytest
from plan_helpers import lr_fraction, model_of, plan_of, run_of
from pytest import approx
from test_rules import DEPTHS, HIDDEN, MUPP, SQRT_128_OVER_128, VECTORS, decays, rates, transfer

from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.engine.updates import adjusted
from lit_gpt.scaling.base import LEARNED_ROLES, Init, Plan
from lit_gpt.scaling.describe import describe
from lit_gpt.scaling.optimizer_facts import GROWTH, OptimizerFacts, UpdateRule, everywhere, taking
from lit_gpt.scaling.plan import Counted, build_plan, step_values

TABLES, REST = ("embedding", "head"), ("matrix", "expert", "router", "vector", "conv")
HYPERP = {  # d: (rate of tables, rate of the rest) at twice the base tokens
    8: (0.016, 0.01281711804),
    12: (0.01306394529, 0.01046513306),
    16: (0.01131370850, 0.009063071084),
    20: (0.01011928851, 0.008106257211),
    24: (0.009237604307, 0.007399966552),
}


def plan(train_name: str, depth: int, hps: dict[str, Any] | None = None, **fields: Any) -> Plan:
    return plan_of(run_of(train_name, depth=depth, hps={"eta0": 0.016, "t0": 10.4e9, **(hps or {})}, **fields))


@pytest.mark.parametrize("depth", DEPTHS)
def test_hyperp(depth: int) -> None:
    p = plan("v2scale_mup_muonh", depth, max_tokens=2 * 10.4e9)
    assert (p.rule, p.optimizer) == ("hyperp", "muonh")
    assert rates(p, LEARNED_ROLES) == approx([HYPERP[depth][1]] * len(LEARNED_ROLES))
    assert decays(p, LEARNED_ROLES) == [0] * len(LEARNED_ROLES)
    assert p.schedule.warmup_tokens == 0
    m = p.multipliers
    assert (m.logit, m.router, m.residual) == (1, 1, approx(MUPP[depth][3]))
    assert m.attention == approx(SQRT_128_OVER_128)
    assert [p.roles[r].update_rule for r in ("matrix", "expert", "router")] == ["muonh"] * 3
    assert [p.roles[r].update_rule for r in (*TABLES, "vector", "conv")] == ["adamw", "adamh", "adamw", "adamw"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_hyperp_as_its_paper_has_it(depth: int) -> None:
    p = plan("x", depth, optimizer="muonh", parameterization="hyperp_paper", max_tokens=2 * 10.4e9)
    tables, rest = HYPERP[depth]
    assert rates(p, TABLES) == approx([tables] * 2)
    assert rates(p, REST) == approx([rest] * 5)
    assert decays(p, LEARNED_ROLES) == [0] * len(LEARNED_ROLES)


def test_hyperp_at_other_batches_and_budgets() -> None:
    p = plan("muonh", 16, total_bsz=2**22, max_tokens=4 * 10.4e9)  # sqrt(2) sqrt(1/2) = 1
    assert p.roles["matrix"].lr == approx(0.016 * 0.6417129488)
    paper = plan("x", 16, total_bsz=2**22, max_tokens=4 * 10.4e9, optimizer="muonh", parameterization="hyperp_paper")
    assert paper.roles["head"].lr == approx(0.016)
    short = plan("muonh", 8, total_bsz=2**19, max_tokens=5.2e9)  # sqrt(1/4) 2^0.32
    assert short.roles["vector"].lr == approx(0.008 * 1.2483305490)


def test_hyperp_has_no_factor_for_width() -> None:
    assert plan("muonh", 16, ar=64, max_tokens=2 * 10.4e9).roles["matrix"].lr == approx(HYPERP[16][1])


def test_the_router_starts_like_a_matrix() -> None:
    for rule in ("hyperp", "mup", "mupp"):
        init = transfer(rule, optimizer="muonh").init
        assert init["router"] == init["matrix"] == Init("fan_in_uniform")


@pytest.mark.parametrize("name", ["muon", "normuon", "muonball"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_muon_under_mupp(name: str, depth: int) -> None:
    """ArchScale's: one rate, decay times d0/d on matrices, logits d0/L, routers 1."""
    p = plan("mup", depth, {"eta0": 6e-4, "t0": 9.5e9}, optimizer=name)
    r, vector_lr, _, residual = MUPP[depth]
    assert rates(p, LEARNED_ROLES) == approx([vector_lr] * len(LEARNED_ROLES))
    assert decays(p, HIDDEN) == approx([0.0 if name == "muonball" else 0.1 * r] * 3)
    assert decays(p, VECTORS) == [0] * 4
    assert (p.multipliers.logit, p.multipliers.router) == (approx(r), 1)
    assert p.multipliers.residual == approx(residual)
    assert p.schedule.warmup_tokens == 0 and p.momentum == 0.95


def test_muon_under_mup_and_sp() -> None:
    mup = plan("ori_mup_muon", 16, {"eta0": 0.02})
    assert rates(mup, LEARNED_ROLES) == approx([0.02] * len(LEARNED_ROLES))
    assert decays(mup, (*HIDDEN, *VECTORS)) == approx([0.05] * 3 + [0.1] * 4)
    sp = plan("muon", 16, {"eta0": 0.02})
    assert (sp.rule, sp.optimizer, sp.roles["matrix"].update_rule) == ("sp", "muon", "muon")
    assert rates(sp, LEARNED_ROLES) == approx([0.02] * len(LEARNED_ROLES))


@pytest.mark.parametrize("name", ["hadam", "lion"])
def test_other_optimizers_scale_as_adam(name: str) -> None:
    p, adam = plan("mup", 16, optimizer=name), plan("mup", 16)
    assert rates(p, LEARNED_ROLES) == rates(adam, LEARNED_ROLES) and decays(p, HIDDEN) == approx([0.1] * 3)
    assert p.schedule.warmup_tokens == 1e9
    assert p.roles["matrix"].update_rule == {"hadam": "nadam", "lion": "lion"}[name]


RELATIVES = {  # at d16: r = 1/2, sqrt(r) = 0.7071067812. (powers of r of matrix, router, embedding, head)
    # Orthogonal times 0.2 sqrt(n): n^1/2 too long for a matrix, n for a router, whose steps should fall as n^-1/2.
    "dmuon": (0.5, 1, 0, 0),
    # Orthogonal times sqrt(max(1, R / C)): as Muon's for a matrix, constant for a router.
    "torch_muon": (0, 0.5, 0, 0),
    # Rows of length 1 along n inputs: n^1/2 too long; a router's too, whose outputs are as many at any width.
    "rmnp": (0.5, 0.5, 0, 0),
    # Steps of tables are 3000 / n, and muP wants them constant, with logits times r.
    "scion": (0, 0, -1, -1),
    "scion_light": (0, 0, -1, -1),
    # A V x n table is orthogonal times sqrt(V / n): rows of length 1, so entries of n^-1/2; logits of size 1, times r.
    "mars_shampoo": (0, 0.5, -0.5, -1),
}
POWERS = {-1: 2, -0.5: 1.414213562, 0: 1, 0.5: 0.7071067812, 1: 0.5}  # of 1/2


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_muon_under_mup(name: str) -> None:
    """Rate times decay goes as r for hidden maps, as Muon's; the start is at full rate."""
    p = plan("ori_mup", 16, {"eta0": 0.02}, optimizer=name)
    matrix, router, embedding, head = (POWERS[power] for power in RELATIVES[name])
    assert rates(p, HIDDEN) == approx([0.02 * matrix, 0.02 * matrix, 0.02 * router])
    assert rates(p, VECTORS) == approx([0.02 * embedding, 0.02 * head, 0.02, 0.02])
    assert decays(p, HIDDEN) == approx([0.05 / matrix, 0.05 / matrix, 0.05 / router])
    assert (p.multipliers.router, p.multipliers.logit) == (1, 0.5)
    assert p.roles["router"].init == p.roles["matrix"].init and p.schedule.warmup_tokens == 0


@pytest.mark.parametrize(
    ("name", "args", "same"),
    [
        ("muon", {"adjust": "rms"}, "dmuon"),
        ("normuon", {"adjust": "clip"}, "torch_muon"),
        ("torch_muon", {"adjust_lr_fn": "match_rms_adamw"}, "dmuon"),
        ("muon", {"adjust": "nonsense"}, "muonball"),
        ("adamw", {"adjust": "rms"}, "lion"),
    ],
)
def test_the_length_of_steps_that_is_given_counts(name: str, args: dict[str, Any], same: str) -> None:
    given = plan("ori_mup", 16, optimizer=name, optimizer_args=args)
    assert rates(given, LEARNED_ROLES) == rates(plan("ori_mup", 16, optimizer=same), LEARNED_ROLES)


@pytest.mark.parametrize("mode", ["spectral", "clip", "rms", "none"])
def test_growth_is_that_of_the_factors(mode: str) -> None:
    """Twice as wide: the spectral norm of a step over sqrt(R / C), for 3n x n maps and 8 x n routers."""

    def growth_of(narrow: tuple[int, int], wide: tuple[int, int]) -> float:
        small, large = (adjusted(mode, r, c) / (r / c) ** 0.5 for r, c in (narrow, wide))
        return log2(large / small)

    assert GROWTH[mode] == approx((growth_of((192, 64), (384, 128)), growth_of((8, 64), (8, 128))))


@pytest.mark.parametrize("rule", ["hyperp", "hyperp_paper"])
@pytest.mark.parametrize(
    ("name", "args"), [("adamw", {}), ("lion", {}), ("dmuon", {}), ("rmnp", {}), ("muon", {"adjust": "rms"})]
)
def test_hyperp_is_for_steps_relative_to_the_weights(rule: str, name: str, args: dict[str, Any]) -> None:
    typed = "".join(f" --optimizer_args.{key} {value}" for key, value in args.items())
    says = f"no factor for the width.*those of --optimizer {name}{typed} are not. Give --optimizer muonh"
    with pytest.raises(UserError, match=says):
        plan("x", 8, optimizer=name, parameterization=rule, optimizer_args=args)
    for allowed in ("muon", "normuon", "muonball"):
        plan("x", 8, optimizer=allowed, parameterization=rule)


def test_a_warmup_that_is_given_is_used() -> None:
    assert plan("mup_muon", 8, {"warmup_tokens": 5e8}).schedule.warmup_tokens == 5e8
    assert plan("mup", 8, {"warmup_tokens": 0}).schedule.warmup_tokens == 0


def test_spheres_do_not_decay() -> None:
    """A decay that is given acts on the roles off the spheres only, and on none of them under HyperP."""
    p = plan("x", 8, {"weight_decay": 0.2}, optimizer="muonh")
    assert decays(p, (*HIDDEN, "head")) == [0] * 4 and decays(p, ("embedding", "vector")) == approx([0.2] * 2)
    assert decays(plan("x", 8, optimizer="muonh"), LEARNED_ROLES) == [0] * len(LEARNED_ROLES)
    assert decays(plan("muonh", 8, {"weight_decay": 0.2}), LEARNED_ROLES) == [0] * len(LEARNED_ROLES)


@pytest.mark.parametrize("depth", DEPTHS)
def test_completep(depth: int) -> None:
    """Width 128 d and depth d: r = l = 8/d; at alpha = 1 no rate depends on the depth."""
    p = plan("x", depth, {"eta0": 6e-4}, parameterization="completep")
    r = MUPP[depth][0]
    assert rates(p, HIDDEN) == approx([6e-4 * r] * 3) and rates(p, VECTORS) == approx([6e-4] * 4)
    assert decays(p, HIDDEN) == approx([0.1 / r] * 3)
    assert decays(p, VECTORS) == approx([0.1, 0.1, 0, 0])
    assert (p.multipliers.residual, p.multipliers.logit) == approx((r, r))
    assert [p.roles[role].eps_factor for role in (*TABLES, "matrix", "vector")] == approx([r, r, r * r, r * r])
    assert p.roles["matrix"].lr * p.roles["matrix"].weight_decay == approx(6e-5)


def test_completep_at_one_width_and_one_depth() -> None:
    deep = transfer("completep", depth=32)  # width as at the base
    assert (deep.lr["matrix"], deep.weight_decay["matrix"], deep.multipliers.residual) == (1, 1, 0.25)
    assert (deep.eps["matrix"], deep.eps["head"]) == (0.25, 1)
    wide = transfer("completep", width=4096)
    assert (wide.lr["matrix"], wide.weight_decay["matrix"], wide.multipliers.residual) == (0.25, 4, 1)
    muon = transfer("completep", width=4096, optimizer="muon")
    assert (muon.lr["matrix"], muon.weight_decay["matrix"]) == (1, 1)


def test_power_lines() -> None:
    """tau = 1.084 TPP^-0.527; at 20 tokens per parameter 1.084 * 20^-0.527 = 1.084 * 0.2062326 = 0.2235561."""
    budget = {"max_tokens": 2e9, "total_bsz": 2**21, "hps": {"warmup_tokens": 0}}
    run = run_of("mup", depth=8, weight_decay_rule="power_lines", **budget)
    model = model_of(run, 8)
    sized = Counted(model.config, {**model.parameters, "active": 10**8})
    p = build_plan(run, OPTIMIZERS.facts("adamw"), sized, sized, 1)
    # B / (tau D) = 2^21 / (0.2235561 * 2e9) = 0.004690438 per step at full rate, over lr 6e-4.
    assert p.roles["matrix"].weight_decay == approx(0.004690438 / 6e-4, rel=1e-5)
    assert decays(p, VECTORS) == [0] * 4, "the rule's own zeros stay"
    independent = run_of("v2scale_mup", depth=8, weight_decay_rule="power_lines", **budget)
    q = build_plan(independent, OPTIMIZERS.facts("adamw"), sized, sized, 1)
    assert q.roles["matrix"].weight_decay == approx(0.004690438, rel=1e-5)
    for one in (p, q):
        now = step_values(one, 0, 8192)
        assert now.lr["matrix"] * now.weight_decay["matrix"] == approx(0.004690438 * lr_fraction(one, 0, now), rel=1e-5)


def test_decay_options_that_contradict() -> None:
    with pytest.raises(UserError, match=r"power_lines computes the decay, and --base_hps.weight_decay is 0.1"):
        plan("mup", 8, {"weight_decay": 0.1}, weight_decay_rule="power_lines")
    with pytest.raises(UserError, match="--cautious_weight_decay is not known to the optimizer sgd"):
        plan("mup", 8, optimizer="sgd", cautious_weight_decay=True)


def test_what_starts_at_zero_is_refused_on_a_sphere() -> None:
    with pytest.raises(UserError, match=r"the head would start at zero and never move. Give --head_init_std"):
        plan("muonh", 8, head_init_std=None)
    plan("mup_muon", 8, head_init_std=None)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_what_trains_a_role_is_the_optimizers_own_or_adamw(name: str) -> None:
    rules = {role: OPTIMIZERS.facts(name).rule(role).name for role in LEARNED_ROLES}
    assert rules["embedding"] in (name, "adamw") and rules["matrix"] == {"hadam": "nadam", "dmuon": "muon"}.get(
        name, name
    )


def described(p: Plan) -> str:
    return describe(p, OPTIMIZERS.facts(p.optimizer))


def test_betas_of_a_rule_stay_where_the_second_alone_is_read() -> None:
    """They were left out by whoever has no first moment, or one of its own, and the rule's beta2 with them."""
    role = plan("v2scale_mup_muonh", 8).roles["vector"]
    role = replace(role, betas=(0.8, 0.995), eps_factor=2.0)
    for constants in (taking(beta2=None), taking(beta1=0.9, beta2=None)):
        facts = OptimizerFacts(everywhere(UpdateRule("own", None, constants)))
        assert facts.acting("vector", role, {}) == replace(role, eps_factor=1.0)


def test_the_table_says_who_trains_what() -> None:
    text = described(plan("muonh", 16, max_tokens=2 * 10.4e9))
    assert "rule         hyperp, batch rule default, optimizer muonh" in text and "muon momentum 0.95" in text
    for line in ("embedding    0.00906307             0  adamw ", "matrix       0.00906307             0  muonh "):
        assert line in text
    torchs = described(plan("x", 16, optimizer="torch_muon"))
    assert "  torch_muon eps 1e-07 N(0, 0.02)" in torchs and "  adamw                N(0, 0.02)" in torchs
    assert "cautious weight decay" in described(plan("mup", 8, cautious_weight_decay=True))
