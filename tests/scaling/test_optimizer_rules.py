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

from typing import Any

import pytest
from plan_helpers import model_of, plan_of, run_of
from pytest import approx
from test_rules import DEPTHS, HIDDEN, MUPP, SQRT_128_OVER_128, VECTORS, decays, rates, transfer

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import LEARNED_ROLES, Init, Plan
from lit_gpt.scaling.decay import best_timescale
from lit_gpt.scaling.methods import METHODS, method_of
from lit_gpt.scaling.plan import Counted, build_plan, describe, step_values

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
    assert rates(p, LEARNED_ROLES) == approx([HYPERP[depth][1]] * 7)
    assert decays(p, LEARNED_ROLES) == [0] * 7
    assert p.schedule.warmup_tokens == 0
    m = p.multipliers
    assert (m.logit, m.router, m.residual) == (1, 1, approx(MUPP[depth][3]))
    assert m.attention == approx(SQRT_128_OVER_128)
    assert [p.roles[r].method for r in ("matrix", "expert", "router")] == ["muonh"] * 3
    assert [p.roles[r].method for r in (*TABLES, "vector", "conv")] == ["adamw", "adamh", "adamw", "adamw"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_hyperp_as_its_paper_has_it(depth: int) -> None:
    p = plan("x", depth, optimizer="muonh", parameterization="hyperp_paper", max_tokens=2 * 10.4e9)
    tables, rest = HYPERP[depth]
    assert rates(p, TABLES) == approx([tables] * 2)
    assert rates(p, REST) == approx([rest] * 5)
    assert decays(p, LEARNED_ROLES) == [0] * 7


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
    """The reference's section 3.6: one rate, decay times d0/d on matrices, logits d0/L, routers 1."""
    p = plan("mup", depth, {"eta0": 6e-4, "t0": 9.5e9}, optimizer=name)
    r, vector_lr, _, residual = MUPP[depth]
    assert rates(p, LEARNED_ROLES) == approx([vector_lr] * 7)
    assert decays(p, HIDDEN) == approx([0.0 if name == "muonball" else 0.1 * r] * 3)
    assert decays(p, VECTORS) == [0] * 4
    assert (p.multipliers.logit, p.multipliers.router) == (approx(r), 1)
    assert p.multipliers.residual == approx(residual)
    assert p.schedule.warmup_tokens == 0 and p.momentum == 0.95


def test_muon_under_mup_and_sp() -> None:
    mup = plan("ori_mup_muon", 16, {"eta0": 0.02})
    assert rates(mup, LEARNED_ROLES) == approx([0.02] * 7)
    assert decays(mup, (*HIDDEN, *VECTORS)) == approx([0.05] * 3 + [0.1] * 4)
    sp = plan("muon", 16, {"eta0": 0.02})
    assert (sp.rule, sp.optimizer, sp.roles["matrix"].method) == ("sp", "muon", "muon")
    assert rates(sp, LEARNED_ROLES) == approx([0.02] * 7)


@pytest.mark.parametrize("name", ["hadam", "lion"])
def test_other_optimizers_scale_as_adam(name: str) -> None:
    p, adam = plan("mup", 16, optimizer=name), plan("mup", 16)
    assert rates(p, LEARNED_ROLES) == rates(adam, LEARNED_ROLES) and decays(p, HIDDEN) == approx([0.1] * 3)
    assert p.schedule.warmup_tokens == 1e9
    assert p.roles["matrix"].method == {"hadam": "nadam", "lion": "lion"}[name]


def test_a_warmup_that_is_given_is_used() -> None:
    assert plan("mup_muon", 8, {"warmup_tokens": 5e8}).schedule.warmup_tokens == 5e8
    assert plan("mup", 8, {"warmup_tokens": 0}).schedule.warmup_tokens == 0


def test_spheres_do_not_decay() -> None:
    """A decay that is given acts on the roles off the spheres only, and on none of them under HyperP."""
    p = plan("x", 8, {"weight_decay": 0.2}, optimizer="muonh")
    assert decays(p, (*HIDDEN, "head")) == [0] * 4 and decays(p, ("embedding", "vector")) == approx([0.2] * 2)
    assert decays(plan("x", 8, optimizer="muonh"), LEARNED_ROLES) == [0] * 7
    assert decays(plan("muonh", 8, {"weight_decay": 0.2}), LEARNED_ROLES) == [0] * 7


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
    assert best_timescale(20.0) == approx(0.2235561, rel=1e-5)  # the paper: about 0.21 at 20
    run = run_of("mup", depth=8, weight_decay_rule="power_lines", max_tokens=2e9, hps={"warmup_tokens": 0})
    model = model_of(run, 8)
    sized = Counted(model.config, {**model.parameters, "active": 10**8})
    p = build_plan(run, sized, sized, 1)
    # B / (tau D) = 2^21 / (0.2235561 * 2e9) = 0.004690438 per step at full rate, over lr 6e-4.
    assert p.roles["matrix"].weight_decay == approx(0.004690438 / 6e-4, rel=1e-5)
    assert decays(p, VECTORS) == [0] * 4, "the rule's own zeros stay"
    independent = run_of(
        "v2scale_mup", depth=8, weight_decay_rule="power_lines", max_tokens=2e9, hps={"warmup_tokens": 0}
    )
    q = build_plan(independent, sized, sized, 1)
    assert q.roles["matrix"].weight_decay == approx(0.004690438, rel=1e-5)
    for one in (p, q):
        now = step_values(one, 0, 8192)
        assert now.lr["matrix"] * now.weight_decay["matrix"] == approx(0.004690438 * now.lr_fraction, rel=1e-5)


def test_decay_options_that_contradict() -> None:
    with pytest.raises(UserError, match=r"power_lines computes the decay, and --base_hps.weight_decay is 0.1"):
        plan("mup", 8, {"weight_decay": 0.1}, weight_decay_rule="power_lines")
    with pytest.raises(UserError, match="--cautious_weight_decay is not known to the optimizer elsewhere"):
        plan("mup", 8, optimizer="elsewhere", cautious_weight_decay=True)


@pytest.mark.parametrize("changes", [{"head_init_std": None}, {"hps": {"w_init_scale": 0.0}}])
def test_what_starts_at_zero_is_refused_on_a_sphere(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the (head|matrix) would start at zero and never move. Give --head_init_std"):
        plan("muonh", 8, **changes)
    plan("mup_muon", 8, **changes)


def test_methods() -> None:
    assert method_of("of_somebody_else", "matrix") == "of_somebody_else"
    assert {method_of(name, "embedding") for name in METHODS} == {"adamw", "lion"}


def test_the_table_says_who_trains_what() -> None:
    text = describe(plan("muonh", 16, max_tokens=2 * 10.4e9))
    assert "rule         hyperp, batch rule default, optimizer muonh" in text and "muon momentum 0.95" in text
    for line in ("embedding    0.00906307             0  adamw ", "matrix       0.00906307             0  muonh "):
        assert line in text
    assert "cautious weight decay" in describe(plan("mup", 8, cautious_weight_decay=True))
