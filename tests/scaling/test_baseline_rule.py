"""The rule `baseline`: published rates of every role, a momentum that rises and falls, a decay that ends at zero."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from plan_helpers import plan_of, run_of

from lit_gpt.architectures.baseline import build
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import MomentumCurve, Multipliers, Plan
from lit_gpt.scaling.plan import step_values

OPTIONS = {"depth": 8, "parameterization": "baseline", "optimizer": "normuon", "max_tokens": 120e6, "total_bsz": 131072}
HPS = {"b0": 524288, "eta0": 0.02, "weight_decay": 0.2, "muon_beta": 0.97, "warmup_tokens": 5e6, "min_lr_mult": 0.05}


def make(**options: Any) -> Plan:
    merged: dict[str, Any] = {"hps": HPS} | OPTIONS | options
    return plan_of(run_of(train_model="baseline", schedule="wsd", decay_fraction=0.65, **merged))


def test_rates_are_the_published_ones_at_the_batch_of_the_run() -> None:
    roles, root = make().roles, math.sqrt(131072 / 524288)
    published = {"embedding": 0.3, "value_table": 0.15, "head": 0.008}
    for role, rate in published.items():
        assert roles[role].lr == pytest.approx(rate * math.sqrt(768 / 512) * root)
    assert roles["matrix"].lr == roles["output"].lr == roles["scalar"].lr == pytest.approx(0.02 * root)
    assert roles["residual_scalar"].lr == pytest.approx(0.005 * root)
    assert roles["embedding"].betas == (0.8, 0.995) and roles["head"].betas == (0.8, 0.96)
    assert {name for name, role in roles.items() if role.weight_decay} == {"matrix", "output", "expert", "router"}


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_what_adds_up_over_layers_is_divided_by_their_number(depth: int) -> None:
    """CompleteP's alpha = 1 (arXiv:2505.01618, table 1) for branches, and the same for the sums of e and of log r."""
    plan, tuned = make(depth=depth, ar=512 / depth), make()
    layers = build(depth, Shape("baseline")).starts
    assert sum(layers.at(i, depth)[1] for i in range(depth)) == pytest.approx(8 * 0.1)
    assert plan.multipliers == replace(tuned.multipliers, residual=8 / depth)
    slower = {role for role in plan.roles if plan.roles[role].lr * depth == pytest.approx(8 * tuned.roles[role].lr)}
    assert slower == ({"scalar", "residual_scalar"} if depth != 8 else set(plan.roles))
    assert tuned.multipliers == Multipliers()  # to the bit: the recipe was tuned there


@pytest.mark.parametrize("width", [64, 512, 768, 1024])
def test_rates_over_width_are_exactly_the_recipes_at_its_own(width: int) -> None:
    """Tables fall with the root of the width, as published; the head, a sum over it, as the power 3/4."""
    tuned, found = make().roles, make(ar=width / 8).roles
    for role in tuned:
        power = {"embedding": 0.5, "value_table": 0.5, "head": 0.75}.get(role, 0.0)
        assert found[role].lr == pytest.approx(tuned[role].lr * (512 / width) ** power)


@pytest.mark.parametrize("width", [64, 512, 1024])
def test_a_tied_table_is_trained_as_the_head_that_it_is(width: int) -> None:
    """It had the rate of tables, 37.5 times that of the head at width 512, and the loss stayed near that of a guess."""
    tied, untied = (make(ar=width / 8, tie_embeddings=tie).roles for tie in (True, False))
    as_head = untied["embedding"].lr / 37.5 * (512 / width) ** 0.25
    assert tied["embedding"].lr == untied["head"].lr == pytest.approx(as_head)
    assert tied["embedding"].betas == untied["head"].betas == (0.8, 0.96)
    assert tied["embedding"].init.std == 0.02 and untied["embedding"].betas == (0.8, 0.995)
    assert {name for name in tied if tied[name] != untied[name]} == {"embedding"}


@pytest.mark.parametrize(("optimizer", "power"), [("normuon", 0.0), ("dmuon", 0.5), ("adamw", 1.0), ("lion", 1.0)])
def test_optimizers_whose_steps_grow_with_the_width_are_slowed_down(optimizer: str, power: float) -> None:
    """muP's powers (arXiv:2203.03466, table 8): every optimizer had the rate of the recipe's at any width."""
    for width in (64, 512, 1024):
        roles = make(ar=width / 8, hps=HPS | {"ar0": 64}, optimizer=optimizer).roles
        assert roles["matrix"].lr == roles["output"].lr == pytest.approx(0.01 * (512 / width) ** power)


def test_a_flat_head_start_acts() -> None:
    """It was taken and did nothing; the head's own std did."""
    for width, start in ((512, "fixed"), (512, "flat"), (2048, "fixed"), (2048, "flat")):
        plan = make(ar=width / 8, hps=HPS | {"ar0": 64}, head_start=start, head_init_std=0.001)
        assert plan.roles["head"].init.std == pytest.approx(0.001 * math.sqrt(512 / width) ** (start == "flat"))


def test_momentum_and_decay_follow_their_curves() -> None:
    plan = make()
    for tokens in (0, 6_000_000, 30_000_000, 60_000_000, 90_000_000, 119_900_000):
        values, middle = step_values(plan, tokens, 131072), tokens + min(131072, 120_000_000 - tokens) / 2
        left = min(1.0, (120e6 - middle) / (0.65 * 115e6))  # of the decay
        rate = 0.05 + 0.95 * left
        rise = 0.85 + 0.12 * min(1.0, middle / (400 * 131072))
        expected = min(rise, 0.90 + 0.07 * rate) if middle > 5e6 else rise
        assert values.momentum == pytest.approx(expected)
        assert values.weight_decay["matrix"] == pytest.approx(0.1 * (1 + math.cos(math.pi * middle / 120e6)))
        assert values.betas["value_table"] == (0.8, 0.995) and values.betas["gate"] == (0.8, 0.95)


def test_options_overrule_the_curves_and_a_plan_survives_json() -> None:
    plan = make(momentum_schedule="constant", weight_decay_schedule="constant")
    assert plan.momentum_curve is None and step_values(plan, 0, 131072).momentum == 0.97
    assert step_values(plan, 119_000_000, 131072).weight_decay["matrix"] == pytest.approx(0.2)
    plan = make()
    assert plan.momentum_curve == MomentumCurve(0.85, 400 * 131072, 0.90)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert replace(plan, momentum_curve=None) != plan


def test_the_momentum_rises_over_400_steps_of_a_ramped_run_too() -> None:
    """It rose over as many tokens as 400 steps of the first batch have: in 111 steps under --bramp_ratio 4."""
    plan, tokens = make(bramp_ratio=4), 0
    for _ in range(400):
        tokens += step_values(plan, tokens, plan.context).batch_tokens
    assert plan.momentum_curve == MomentumCurve(0.85, tokens, 0.90) and tokens > 3 * 400 * 131072


def test_momentum_schedule_is_refused_where_no_momentum_is_planned() -> None:
    with pytest.raises(UserError, match="--momentum_schedule is about Muon and its relatives"):
        plan_of(run_of(train_model="transformer", depth=8, momentum_schedule="rise_and_fall"))
