"""Rate times decay of every rule, coupled and independent, against a table derived by hand.

Depth 24, width 3072, from depth 8 and width 1024: r = 1/3, l = 1/3. Coupled decay shrinks a weight by rate times decay
per step, independent decay by the decay alone; both in units of the base's (6e-4 times 0.1, and 4e-5).

| rule | source | coupled, of matrices | independent |
|---|---|---|---|
| sp, plain | nothing transfers | 1 | 1 |
| mup | ArchScale and arXiv:2603.28743: rate r, decay 1 (AdamW); rate 1, decay r (Muon) | r | 1 (AdamW), r (Muon) |
| mupp, super_mup | the same, and every rate times sqrt(l) (arXiv:2507.06607) | r sqrt(l) | 1, r |
| completep | arXiv:2505.01618, table 1: rate r, decay 1/r, so that the product does not depend on the width | 1 | 1 |
| hyperp | arXiv:2603.28743: no decay | 0 | 0 |

Relatives of Muon take Muon's step with another factor, which the rate undoes, so their product is Muon's. Embedding and
head: rate 1 and decay 1 under mup and completep whatever undoes the optimizer's own factor; 0 under muP++.
"""

from __future__ import annotations

import pytest
from plan_helpers import lr_fraction, plan_of, run_of
from pytest import approx

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Init, Plan
from lit_gpt.scaling.plan import step_values
from lit_gpt.scaling.rules import RULES

ADAM = ("adamw", "lion", "hadam", "soap", "adam_mini")
MUON = ("muon", "normuon", "dmuon", "torch_muon", "rmnp", "scion", "scion_light", "mars_shampoo")
R, ROOT = 1 / 3, 3**-0.5
# rule -> {roles: (coupled, independent) for ADAM, (coupled, independent) for MUON}
HIDDEN, TABLES, VECTORS = ("matrix", "expert", "router"), ("embedding", "head"), ("vector", "conv")
ONE, ZERO = (1.0, 1.0), (0.0, 0.0)
EXPECTED = {
    "sp": {HIDDEN: (ONE, ONE), TABLES: (ONE, ONE), VECTORS: (ONE, ONE)},
    "plain": {HIDDEN: (ONE, ONE), ("head",): (ONE, ONE), ("embedding", "vector"): (ZERO, ZERO)},
    "mup": {HIDDEN: ((R, 1.0), (R, R)), TABLES: (ONE, ONE), VECTORS: (ONE, ONE)},
    "mupp": {HIDDEN: ((R * ROOT, 1.0), (R * ROOT, R)), TABLES: (ZERO, ZERO), VECTORS: (ZERO, ZERO)},
    "super_mup": {HIDDEN: ((R * ROOT, 1.0), (R * ROOT, R)), TABLES: (ZERO, ZERO), VECTORS: (ZERO, ZERO)},
    "completep": {HIDDEN: (ONE, ONE), TABLES: (ONE, ONE), VECTORS: (ZERO, ZERO)},
}


def shrink(plan: Plan, role: str) -> float:
    """What one step at full rate takes off a weight of this role."""
    now = step_values(plan, 2 * 10**9, 8192)
    return now.lr[role] * now.weight_decay[role] / lr_fraction(plan, 2 * 10**9, now)


def plan(rule: str, optimizer: str, independent: bool, depth: int) -> Plan:
    return plan_of(
        run_of(
            parameterization=rule,
            optimizer=optimizer,
            depth=depth,
            independent_weight_decay=independent,
            max_tokens=1e10,
        )
    )


@pytest.mark.parametrize("optimizer", ADAM + MUON)
@pytest.mark.parametrize("rule", EXPECTED)
def test_rate_times_decay(rule: str, optimizer: str) -> None:
    """CompleteP under independent decay shrank three times too much at d24, and D-Muon less than Muon does."""
    for independent in (False, True):
        base, large = (plan(rule, optimizer, independent, depth) for depth in (8, 24))
        unit = 4e-5 if independent else 6e-5
        for roles, by_kind in EXPECTED[rule].items():
            factor = by_kind[optimizer in MUON][independent]
            for role in roles:
                assert shrink(base, role) == approx(unit if factor else 0.0), (role, independent)
                assert shrink(large, role) == approx(unit * factor), (role, independent)


@pytest.mark.parametrize("rule", ["hyperp", "hyperp_paper"])
def test_hyperp_never_decays(rule: str) -> None:
    for independent in (False, True):
        p = plan(rule, "muonh", independent, 24)
        assert {shrink(p, role) for role in p.roles} == {0.0}


@pytest.mark.parametrize("rule", [r for r in RULES.names() if not r.startswith("hyperp")])
def test_power_lines_shrinks_alike_under_both_kinds(rule: str) -> None:
    """Its paper says what rate times decay is, whatever the rule's factors."""
    shrinks = []
    for independent in (False, True):
        run = run_of(
            parameterization=rule, depth=24, weight_decay_rule="power_lines", independent_weight_decay=independent
        )
        shrinks.append([shrink(plan_of(run), role) for role in ("matrix", "head", "vector")])
    assert shrinks[0] == approx(shrinks[1])


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("batch_rule", ["default", "sde", "sdew", "none"])
def test_power_lines_of_the_batch_that_a_ramp_ends_at(batch_rule: str, independent: bool) -> None:
    """B / (eta lambda D) is the best share of the run, 1.084 TPP^-0.527, once the batch is 4 times the first one.

    Made from the first batch, it was 2 or 4 times that share.
    """
    p = plan_of(
        run_of(
            batch_rule=batch_rule,
            depth=8,
            bramp_ratio=4,
            total_bsz=2**21,
            weight_decay_rule="power_lines",
            independent_weight_decay=independent,
            max_tokens=1e10,
        )
    )
    now = step_values(p, 2 * 10**9, 8192)
    assert now.batch_tokens == 2**23
    wanted = 1.084 * (p.tokens / p.counts["active"]) ** -0.527
    assert now.batch_tokens / (shrink(p, "matrix") * p.tokens) == approx(wanted)


def test_power_lines_that_can_decay_nothing() -> None:
    """It was accepted under HyperP and printed a Plan without any decay."""
    for rule in ("hyperp", "hyperp_paper"):
        with pytest.raises(UserError, match="power_lines cannot act"):
            plan_of(run_of(optimizer="muonh", parameterization=rule, weight_decay_rule="power_lines"))
    assert plan_of(run_of(weight_decay_rule="power_lines")).roles["matrix"].weight_decay > 0


def test_a_head_of_std_0_starts_at_zero() -> None:
    """`--head_init_std null` was refused under MuonH, which keeps its norm, and 0 gave a head that never moves."""
    for std in (None, 0.0):
        with pytest.raises(UserError, match="the head would start at zero and never move"):
            plan_of(run_of("muonh", head_init_std=std))
        assert plan_of(run_of("mup", head_init_std=std)).roles["head"].init == Init("zeros")
    with pytest.raises(UserError, match="--head_start flat"):
        plan_of(run_of("muonh", head_init_std=0.0, head_start="flat"))
