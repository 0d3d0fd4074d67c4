"""The rules sp, mup, mupp and super_mup against numbers worked out by hand.

Base values: d0 = 8, eta0 = 6e-4, b0 = 2^21, head dim 128, width 128 d, so r = d0/d:

| d | r = 8/d | sqrt(8/d) | eta0 sqrt(8/d) | eta0 sqrt(8/d) 8/d | 1/sqrt(2d) |
|---|---|---|---|---|---|
| 8 | 1 | 1 | 6e-4 | 6e-4 | 1/4 |
| 12 | 2/3 | sqrt(2/3) = 0.8164965809 | 4.898979486e-4 | 3.265986324e-4 | 1/sqrt(24) = 0.2041241452 |
| 16 | 1/2 | 1/sqrt(2) = 0.7071067812 | 4.242640687e-4 | 2.121320344e-4 | 1/sqrt(32) = 0.1767766953 |
| 20 | 2/5 | sqrt(2/5) = 0.6324555320 | 3.794733192e-4 | 1.517893277e-4 | 1/sqrt(40) = 0.1581138830 |
| 24 | 1/3 | 1/sqrt(3) = 0.5773502692 | 3.464101615e-4 | 1.154700538e-4 | 1/sqrt(48) = 0.1443375673 |
"""

from __future__ import annotations

from typing import Any

import pytest
from plan_helpers import lr_fraction, plan_of, run_of
from pytest import approx

from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.scaling.base import LEARNED_ROLES, UNDECAYED, Init, Plan, Situation, Transfer
from lit_gpt.scaling.batch_rules import batch_factors
from lit_gpt.scaling.plan import step_values
from lit_gpt.scaling.rules import RULES

DEPTHS = (8, 12, 16, 20, 24)
HIDDEN = ("matrix", "expert", "router")
VECTORS = ("embedding", "head", "vector", "conv")
DECAYED = tuple(role for role in LEARNED_ROLES if role not in UNDECAYED)
#          d: (r, vector lr, matrix lr, residual)
MUPP = {
    8: (1.0, 6e-4, 6e-4, 0.25),
    12: (0.6666666667, 4.898979486e-4, 3.265986324e-4, 0.2041241452),
    16: (0.5, 4.242640687e-4, 2.121320344e-4, 0.1767766953),
    20: (0.4, 3.794733192e-4, 1.517893277e-4, 0.1581138830),
    24: (0.3333333333, 3.464101615e-4, 1.154700538e-4, 0.1443375673),
}
MUP_MATRIX_LR = {8: 6e-4, 12: 4e-4, 16: 3e-4, 20: 2.4e-4, 24: 2e-4}  # eta0 * 8/d
SQRT_128_OVER_128 = 0.08838834765


def plan(rule: str, depth: int, **fields: Any) -> Plan:
    return plan_of(run_of(parameterization=rule, depth=depth, **fields))


def transfer(rule: str, optimizer: str = "adamw", **changes: Any) -> Transfer:
    base = Situation(
        depth=8,
        base_depth=8,
        width=1024,
        base_width=1024,
        head_dim=128,
        base_head_dim=128,
        tokens=9.5e9,
        base_tokens=9.5e9,
        tied=False,
        steps=OPTIMIZERS.facts(optimizer).steps_with(optimizer, {}),
    )
    return RULES.load(rule).transfer(Situation(**{**vars(base), **changes}))


def rates(p: Plan, roles: tuple[str, ...]) -> list[float]:
    return [p.roles[r].lr for r in roles]


def decays(p: Plan, roles: tuple[str, ...]) -> list[float]:
    return [p.roles[r].weight_decay for r in roles]


@pytest.mark.parametrize("depth", DEPTHS)
def test_sp_transfers_nothing(depth: int) -> None:
    p = plan("sp", depth)
    assert rates(p, LEARNED_ROLES) == approx([6e-4] * len(LEARNED_ROLES))
    assert decays(p, DECAYED) == approx([0.1] * len(DECAYED)) and decays(p, UNDECAYED) == [0] * 3
    assert (p.multipliers.logit, p.multipliers.residual, p.multipliers.router) == (1, 1, 1)
    assert p.multipliers.attention is None
    assert p.schedule.warmup_tokens == 1e9


@pytest.mark.parametrize("depth", DEPTHS)
def test_mup(depth: int) -> None:
    p = plan("mup", depth)
    r = MUPP[depth][0]
    assert rates(p, HIDDEN) == approx([MUP_MATRIX_LR[depth]] * 3)
    assert rates(p, VECTORS) == approx([6e-4] * 4), "no depth factor in original muP"
    assert decays(p, DECAYED) == approx([0.1] * len(DECAYED)), "original muP decays vectors too"
    assert p.multipliers.residual == 1
    assert [p.multipliers.logit, p.multipliers.router] == approx([r, r])
    assert p.multipliers.attention == approx(SQRT_128_OVER_128)


@pytest.mark.parametrize("rule", ["mupp", "super_mup"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_mupp(rule: str, depth: int) -> None:
    p = plan(rule, depth)
    r, vector_lr, matrix_lr, residual = MUPP[depth]
    assert rates(p, HIDDEN) == approx([matrix_lr] * 3)
    assert rates(p, VECTORS) == approx([vector_lr] * 4)
    assert decays(p, HIDDEN) == approx([0.1] * 3)
    assert decays(p, VECTORS) == [0] * 4
    assert p.multipliers.residual == approx(residual)
    assert [p.multipliers.logit, p.multipliers.router] == approx([r, r])
    assert p.multipliers.attention == approx(SQRT_128_OVER_128)


@pytest.mark.parametrize(
    ("depth", "batch", "vector_lr", "matrix_lr"),
    [
        (16, 2**22, 6e-4, 3e-4),  # sqrt(2) sqrt(1/2) = 1; times 1/2
        (8, 2**23, 1.2e-3, 1.2e-3),  # sqrt(4) = 2
        (24, 3 * 2**21, 6e-4, 2e-4),  # sqrt(3) sqrt(1/3) = 1; times 1/3
        (12, 2**20, 3.464101615e-4, 2.309401077e-4),  # sqrt(1/2) sqrt(2/3) = 1/sqrt(3); times 2/3
        (20, 5 * 2**20, 6e-4, 2.4e-4),  # sqrt(5/2) sqrt(2/5) = 1; times 2/5
    ],
)
def test_mupp_at_other_batches(depth: int, batch: int, vector_lr: float, matrix_lr: float) -> None:
    p = plan("mupp", depth, total_bsz=batch)
    assert p.batch_tokens == batch
    assert p.roles["vector"].lr == approx(vector_lr)
    assert p.roles["matrix"].lr == approx(matrix_lr)


def test_the_batch_ratio_is_that_of_the_rounded_batch() -> None:
    # 3 ranks x 2 x 4096 = 24576 tokens; 2097152 / 24576 = 85.33, so 85 x 24576 = 2088960.
    # sqrt(2088960 / 2097152) = sqrt(0.99609375) = 0.9980449640
    p = plan_of(run_of(), ranks=3)
    assert p.batch_tokens == 2_088_960
    assert p.roles["matrix"].lr == approx(6e-4 * 0.9980449640)
    sde = plan_of(run_of(batch_rule="sde"), ranks=3)
    assert sde.beta2 == approx(0.9501953125, rel=1e-12), "1 - 0.05 * 0.99609375"


@pytest.mark.parametrize("rule", ["sp", "mup", "mupp"])
def test_tokens_change_no_learning_rate_and_no_warmup(rule: str) -> None:
    short, long = plan(rule, 16, max_tokens=1e11), plan(rule, 16, max_tokens=6e11)
    assert short.roles == long.roles
    assert short.schedule.warmup_tokens == long.schedule.warmup_tokens == 1e9
    assert long.tokens == 600_000_000_000


def test_super_mup_warms_up_in_proportion_and_schedules_the_betas() -> None:
    # 1e9 / 9.5e9 * 1.9e11 = 2e10
    p = plan("super_mup", 16, max_tokens=1.9e11)
    assert p.schedule.warmup_tokens == approx(2e10)
    assert p.schedule.total_tokens == 190_000_000_000
    peak, middle = (step_values(p, t, 8192) for t in (int(2e10), int(1.05e11) - 2**20))
    # At the peak 0.95 - 0.10 = 0.85 and 0.975 - 0.05 = 0.925. The middle of the decay,
    # (2e10 + 1.9e11) / 2 = 1.05e11, has s = 1/2: 0.90 and 0.95.
    assert peak.betas["matrix"] == approx((0.85, 0.925), rel=1e-4)
    assert middle.betas["matrix"] == approx((0.90, 0.95), rel=1e-9)
    assert peak.betas["vector"] == (0.9, 0.95), "only groups with weight decay follow the schedule"
    assert super_betas(1.0) == approx((0.85, 0.925)) and super_betas(0.0) == approx((0.95, 0.975))


def super_betas(s: float) -> tuple[float, float]:
    return RULES.load("super_mup").betas(s)


WIDE = {"ar0": 128}  # the base model keeps width 1024


def test_the_width_ratio_comes_from_widths_where_the_base_has_another_aspect_ratio() -> None:
    # ar 64 at d16 is width 1024, the base width: r = 1, while depth still gives 1/sqrt(2).
    p = plan("mupp", 16, ar=64, hps=WIDE)
    assert p.roles["matrix"].lr == approx(4.242640687e-4)
    assert p.roles["vector"].lr == approx(4.242640687e-4)
    assert p.multipliers.logit == 1
    assert p.multipliers.residual == approx(0.1767766953)
    assert p.multipliers.attention == approx(0.1767766953), "head dim 64: sqrt(128) / 64"
    # ar 192 at d8 is width 1536: r = 2/3 at the base depth.
    wide = plan("mupp", 8, ar=192, hps=WIDE)
    assert wide.roles["matrix"].lr == approx(4e-4)
    assert wide.roles["vector"].lr == approx(6e-4)
    assert wide.multipliers.logit == approx(0.6666666667)


@pytest.mark.parametrize("rule", ["sp", "mup", "mupp", "super_mup", "completep", "hyperp"])
def test_a_run_at_the_base_depth_is_at_the_base_whatever_its_aspect_ratio(rule: str) -> None:
    """--ar once left the base model at its family's width: at d8 and ar 64 the budget was a quarter of t0."""
    optimizer = "muonh" if rule == "hyperp" else "adamw"
    p = plan(rule, 8, ar=64, optimizer=optimizer)
    assert p.tokens == 9_500_000_000
    assert rates(p, LEARNED_ROLES) == approx([6e-4] * len(LEARNED_ROLES))
    assert p.multipliers.logit == 1
    deep = plan(rule, 16, ar=64, optimizer=optimizer)
    assert deep.multipliers.logit == approx(1.0 if rule in ("sp", "hyperp") else 0.5), "d0 / d"


def test_the_base_keeps_an_aspect_ratio_of_its_own() -> None:
    # transformer without embeddings at d8: n^2 (12 d + 2 d (1 + 1/4)...) goes as n^2 at fixed head counts, so half the
    # width is a quarter of the parameters, and 4^0.32 = 1.5583291593 of the rate.
    p = plan("hyperp", 8, ar=64, optimizer="muonh", hps=WIDE)
    assert p.tokens == 2_375_000_000
    assert rates(p, LEARNED_ROLES) == approx([6e-4 * 1.5583291593] * len(LEARNED_ROLES))
    with pytest.raises(UserError, match=r"--base_hps.ar0 is 0; it must be from 1 to 10,000"):
        plan("mupp", 8, hps={"ar0": 0})


@pytest.mark.parametrize("rule", ["sp", "plain", "hyperp", "hyperp_paper"])
def test_a_flat_head_start_falls_with_the_root_of_the_width(rule: str) -> None:
    """Logits of a hidden vector of length sqrt(n) start at std sqrt(n): with 0.02 sqrt(1024 / n) at 0.64 everywhere."""
    optimizer = "adamw" if rule in ("sp", "plain") else "muonh"
    for width, std in ((1024, 0.02), (2048, 0.0141421356), (4096, 0.01), (256, 0.04)):
        flat = transfer(rule, width=width, optimizer=optimizer, head_start="flat")
        assert flat.init["head"].kind == "normal" and flat.init["head"].std == approx(std)
        assert flat.multipliers.logit * std * width**0.5 == approx(0.64)
        fixed = transfer(rule, width=width, optimizer=optimizer)
        assert fixed.init["head"] == Init("normal", 0.02)
        assert {**flat.init, "head": None} == {**fixed.init, "head": None} and flat.lr == fixed.lr
    assert plan(rule, 16, optimizer=optimizer, head_start="flat").roles["head"].init.std == approx(0.0141421356)


@pytest.mark.parametrize("rule", ["mup", "mupp", "super_mup", "completep"])
def test_a_flat_head_start_is_refused_where_a_multiplier_does_more(rule: str) -> None:
    assert transfer(rule, width=4096).multipliers.logit * 0.02 * 4096**0.5 == approx(0.64 / 2), "they fall as n^-1/2"
    with pytest.raises(UserError, match=r"logits are multiplied by base width / width.*nothing to undo. Drop it"):
        transfer(rule, width=4096, head_start="flat")


@pytest.mark.parametrize(
    ("changes", "why"), [({"tied": True}, "tied to the token table"), ({"head_init_std": None}, "starts it at zero")]
)
def test_a_flat_head_start_needs_a_head_that_starts(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=f"--head_start flat is about the start of an untied head, and .*{why}"):
        transfer("hyperp", optimizer="muonh", head_start="flat", **changes)


@pytest.mark.parametrize("rule", ["mup", "mupp", "super_mup", "completep"])
def test_narrow_models_start_with_logits_no_larger_than_those_of_the_base(rule: str) -> None:
    """At width 128 under base width 1024 they started at 1.8, which is a loss 1.6 nats above a uniform guess."""
    # 0.64 = 0.02 sqrt(1024) at the base; a base of width 256 starts at 0.32, which leaves room down to 64 (0.64).
    cases = [(1024, 1024, 0.64), (1024, 256, 0.64), (1024, 128, 0.64), (1024, 4096, 0.32), (2048, 1024, 0.90509668)]
    for base, width, logits in [*cases, (256, 128, 0.45254834), (256, 64, 0.64), (256, 32, 0.64)]:
        head, table = (transfer(rule, base_width=base, width=width, tied=tied) for tied in (False, True))
        assert head.multipliers.logit * head.init["head"].std * width**0.5 == approx(logits)
        assert table.init["embedding"].std == head.init["head"].std and head.init["embedding"] == Init("normal", 1e-4)
        if width >= base:
            assert head.init["head"] == Init("normal", 0.02), "exactly"
    assert transfer("hyperp", "muonh", base_width=1024, width=128, tied=True).init["embedding"] == Init("normal", 0.02)


@pytest.mark.parametrize(
    ("head_dim", "scale"),
    # sqrt(128) = 11.3137085; / 128, / 124, / 64, / 256
    [(128, 0.08838834765), (124, 0.09123958467), (64, 0.1767766953), (256, 0.04419417382)],
)
def test_attention_scale(head_dim: int, scale: float) -> None:
    assert transfer("mup", head_dim=head_dim).multipliers.attention == approx(scale)


@pytest.mark.parametrize("rule", ["mup", "mupp", "super_mup"])
def test_mup_initial_weights(rule: str) -> None:
    init = transfer(rule).init
    assert [init[r].kind for r in ("matrix", "expert", "conv")] == ["fan_in_uniform"] * 3
    assert (init["head"], init["router"]) == (Init("normal", 0.02), Init("normal", 0.02))
    assert init["embedding"] == Init("normal", 1e-4)
    tied = transfer(rule, tied=True)
    assert tied.init["embedding"] == Init("normal", 0.02)
    assert tied.init["matrix"] == init["matrix"], "tying changes the table and nothing else"
    assert transfer(rule, head_init_std=None).init["head"].kind == "zeros"
    assert transfer(rule, head_init_std=0.5).init["head"] == Init("normal", 0.5)


def test_sp_initial_weights() -> None:
    init = transfer("sp", head_init_std=0.5).init
    assert [init[r] for r in ("matrix", "expert", "router", "head")] == [Init("normal", 0.02)] * 4
    assert init["embedding"] == Init("normal", 1e-4)
    assert init["conv"].kind == "fan_in_uniform"
    assert transfer("sp", tied=True).init["embedding"] == Init("normal", 0.02)


def test_flags_change_initial_weights() -> None:
    p = plan("mupp", 8, ortho_init=True, maxfan_init=True, hps={"w_init_scale": 3.0})
    assert p.roles["matrix"].init.kind == p.roles["conv"].init.kind == "fan_max_normal", "the last one wins"
    assert p.roles["router"].init == Init("normal", 0.02, 3.0)
    assert [p.roles[r].init.gain for r in ("matrix", "expert", "head")] == [3, 3, 3]
    assert [p.roles[r].init.gain for r in ("embedding", "conv", "vector")] == [1, 1, 1]


@pytest.mark.parametrize(("flag", "kind"), [("diag_init", "identity"), ("ortho_init", "orthogonal")])
def test_a_convolution_keeps_its_start_and_the_plan_says_so(flag: str, kind: str) -> None:
    p = plan("mupp", 8, **{flag: True})
    assert [p.roles[r].init.kind for r in ("matrix", "expert")] == [kind] * 2
    assert p.roles["conv"].init == plan("mupp", 8).roles["conv"].init


def test_depth_scale_and_weight_lr_scale() -> None:
    assert plan("sp", 24, depth_scale=True).multipliers.residual == approx(0.1443375673)
    assert plan("mup", 8, depth_scale=True).multipliers.residual == 0.25
    p = plan("mupp", 16, hps={"weight_lr_scale": 2.0})
    assert rates(p, HIDDEN) == approx([4.242640687e-4] * 3)
    assert rates(p, VECTORS) == approx([4.242640687e-4] * 4)


@pytest.mark.parametrize(
    ("rule", "ratio", "expected"),
    [
        # lr, eps, beta2 (from 0.95), weight decay
        ("default", 4.0, (2.0, 1.0, 0.95, 1.0)),
        ("sde", 4.0, (2.0, 0.5, 0.80, 1.0)),  # 1 - 0.05 * 4
        ("sdew", 4.0, (1.0, 0.5, 0.90, 2.0)),  # 1 - 0.05 * 2
        ("none", 4.0, (1.0, 1.0, 0.95, 1.0)),
        ("default", 0.25, (0.5, 1.0, 0.95, 1.0)),
        ("sde", 0.25, (0.5, 2.0, 0.9875, 1.0)),  # 1 - 0.05 / 4
        ("sdew", 0.25, (1.0, 2.0, 0.975, 0.5)),  # 1 - 0.05 / 2
        ("sde", 1.0, (1.0, 1.0, 0.95, 1.0)),
        ("sdew", 1.0, (1.0, 1.0, 0.95, 1.0)),
    ],
)
def test_batch_rules(rule: str, ratio: float, expected: tuple[float, ...]) -> None:
    f = batch_factors(rule, ratio, 0.95)
    assert (f.lr, f.eps, f.beta2, f.weight_decay) == approx(expected)


def test_batch_rules_reach_the_plan() -> None:
    sde = plan("mupp", 16, batch_rule="sde", total_bsz=2**23)
    assert sde.roles["vector"].lr == approx(2 * 4.242640687e-4)
    assert (sde.eps, sde.beta1, sde.beta2) == approx((5e-9, 0.9, 0.8))
    assert sde.roles["matrix"].weight_decay == approx(0.1)
    sdew = plan("mupp", 16, batch_rule="sdew", total_bsz=2**23)
    assert sdew.roles["vector"].lr == approx(4.242640687e-4)
    assert (sdew.eps, sdew.beta2) == approx((5e-9, 0.9))
    assert sdew.roles["matrix"].weight_decay == approx(0.2)
    assert sdew.roles["vector"].weight_decay == 0


def test_sde_refuses_a_negative_beta2() -> None:
    assert batch_factors("sde", 16.0, 0.95).beta2 == approx(0.2)
    with pytest.raises(UserError, match=r"beta2 = -0.600 at 32 times the base batch.*--batch_rule default"):
        batch_factors("sde", 32.0, 0.95)
    assert batch_factors("sdew", 32.0, 0.95).beta2 == approx(1 - 0.05 * 5.656854249)


def test_default_weight_decays() -> None:
    assert plan("sp", 8).roles["matrix"].weight_decay == 0.1
    independent = plan_of(run_of("v2scale_mup", depth=8))
    assert independent.independent_weight_decay
    assert independent.roles["matrix"].weight_decay == 4e-5
    given = plan_of(run_of("v2scale_mup", depth=8, hps={"weight_decay": 0.1}))
    assert given.roles["matrix"].weight_decay == 0.1
    assert plan("sp", 8, hps={"weight_decay": 0.0}).roles["matrix"].weight_decay == 0


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("extra", [{}, {"total_bsz": 2**22}, {"bramp_ratio": 4}, {"hps": {"weight_lr_scale": 2.0}}])
def test_independent_decay_shrinks_by_decay_times_schedule(depth: int, extra: dict[str, Any]) -> None:
    p = plan_of(run_of("v2scale_mup", depth=depth, **extra))
    for tokens in (0, 10**8, 10**9, 5 * 10**9):
        now = step_values(p, tokens, 8192)
        assert now.lr["matrix"] * now.weight_decay["matrix"] == approx(4e-5 * lr_fraction(p, tokens, now))
        assert now.weight_decay["vector"] == 0


def test_coupled_decay_shrinks_by_the_learning_rate() -> None:
    p = plan("mupp", 16)
    now = step_values(p, 10**9, 8192)
    assert now.weight_decay["matrix"] == 0.1
    assert now.lr["matrix"] == approx(2.121320344e-4 * lr_fraction(p, 10**9, now))
