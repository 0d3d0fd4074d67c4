"""What a Plan says of betas, eps, momentum and decay is what the optimizer does: every optimizer, role by role.

A number that the Plan shows for a role, and that changes with an option or a rule, must change that role's steps; one
that it does not show must change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_helpers import plan_of, run_of
from small_optimizers import QUICK, SHAPES, Bag, build, gradients
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.ops.backends import missing
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.optim.engine.groups import set_hyperparameters
from lit_gpt.scaling.base import LEARNED_ROLES, Plan
from lit_gpt.scaling.describe import constants, describe
from lit_gpt.scaling.plan import step_values
from lit_gpt.scaling.rules import sp, super_mup

PRESENT = sorted({role for role, _ in SHAPES.values()})
STEPS, SIZE = 6, 1e-3  # of gradients, about that of eps
ARGS = QUICK | {"sophia": {"rho": 1e6}}  # so that no entry of a step of Sophia's is clipped
TYPED: list[tuple[str, dict[str, Any]]] = [
    ("adan", {"betas": [0.9, 0.8, 0.7]}),
    ("laprop", {"betas": [0.8, 0.9], "eps": 1e-3}),
    ("galore", {"betas": [0.8, 0.9]}),
    ("mars_adamw", {"betas_1d": [0.8, 0.7]}),
    ("mars_lion", {"optimize_1d": True}),
    ("mars_shampoo", {"optimize_1d": True}),
    ("torch_muon", {"eps": 1e-2}),
    ("scion", {"constraint": True}),
]
# What they take off is no rate times decay, which docs/optimizers.md says; muonball's weights go to their sphere.
OWN_DECAY = ("adamp", "lamb", "muonball", "prodigy", "schedulefree_adamw", "schedulefree_sgd")
CASES = [(name, {}) for name in OPTIMIZERS.names()] + TYPED


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def planned(name: str, args: dict[str, Any], hps: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """A Plan as a command makes it, at its peak rate from the first step on, of a model that has the roles of a Bag."""
    base = {"warmup_tokens": 0, "eps": 1e-4, "eta0": 1e-2, "weight_decay": 0.1}
    options = ARGS.get(name, {}) | args
    run = run_of(optimizer=name, schedule="constant", optimizer_args=options, hps=base | (hps or {}), **fields)
    return replace(plan_of(run), counts=dict.fromkeys(PRESENT, 1))


def trained(plan: Plan) -> dict[str, list[Tensor]]:
    """Role -> weights of a Bag after some steps of the run."""
    bag = Bag()
    optimizer: Any = build(bag, plan.optimizer, plan)
    for step in range(STEPS):
        set_hyperparameters(optimizer, step_values(plan, 0, plan.context))
        for turn in range(1 + hasattr(optimizer, "curvature_due")):
            for key, g in gradients(step + 100 * turn).items():
                bag.get_parameter(key).grad = g * SIZE
            optimizer.update_curvature(5) if turn else optimizer.step()
    return {role: [bag.get_parameter(k).detach() for k, (r, _) in SHAPES.items() if r == role] for role in PRESENT}


def differing(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> set[str]:
    return {role for role in one if not all(map(torch.equal, one[role], other[role]))}


def shown(plan: Plan) -> dict[str, dict[str, float]]:
    """Role -> its constants, which must be in the printed table."""
    facts, text = OPTIMIZERS.facts(plan.optimizer), describe(plan, OPTIMIZERS.facts(plan.optimizer))
    adam = next((line for line in text.splitlines() if line.startswith("adam ")), "")
    line = dict(re.findall(r"(beta\d|eps) ([^,;]+)", adam))
    found = {}
    for role in PRESENT:
        found[role] = dict(constants(plan, facts, role, plan.roles[role]))
        row = next(row for row in text.splitlines() if row.startswith(f"{role} "))
        for key, value in found[role].items():
            assert line.get(key) == f"{value:g}" or f"{value:g}" in row, (role, key)
    return found


@pytest.mark.parametrize(("name", "args"), CASES)
def test_what_is_shown_is_what_is_read(name: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`hadam` showed betas of the rule `baseline` that it did not use; sgd, lars, signum, scion showed Adam's."""
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)
    plan = planned(name, args)
    before, numbers, decays = trained(plan), shown(plan), {r: plan.roles[r].weight_decay for r in PRESENT}

    def check(what: str, other: Plan) -> None:
        now, rates = shown(other), {r: other.roles[r].weight_decay for r in PRESENT}
        told = {r for r in PRESENT if now[r] != numbers[r] or rates[r] != decays[r]}
        assert differing(before, trained(other)) == told, what

    for key, value in {"beta1": 0.5, "beta2": 0.6, "eps": 1e-1, "weight_decay": 0.3}.items():
        check(key, planned(name, args, {key: value}))
    own = dict.fromkeys(LEARNED_ROLES, (0.5, 0.6))
    for field, values in {"betas": own, "eps": dict.fromkeys(LEARNED_ROLES, 1e3)}.items():
        with monkeypatch.context() as patch:
            of_rule, given = sp.transfer, {field: values}
            patch.setattr(sp, "transfer", lambda s, of_rule=of_rule, given=given: replace(of_rule(s), **given))
            check(f"{field} of the rule", planned(name, args))


@pytest.mark.parametrize(("name", "args"), CASES)
def test_what_is_shown_is_in_the_groups_of_a_library(name: str, args: dict[str, Any]) -> None:
    if name not in EXTERNAL or missing(EXTERNAL[name].module):
        pytest.skip("no optimizer of a library that is here")
    plan, bag = planned(name, args, {"beta1": 0.5, "beta2": 0.6}), Bag()
    optimizer: Any = build(bag, name, plan)
    for p in bag.parameters():
        p.grad = torch.ones_like(p)
    set_hyperparameters(optimizer, step_values(plan, 0, plan.context))
    optimizer.step()
    for group, _, hidden in optimizer.pairs:
        single = group["role"] == "vector" and "betas_1d" in hidden and not hidden["optimize_1d"]
        betas = hidden.get("betas_1d" if single else "betas", ())
        used = {f"beta{i}": float(b) for i, b in enumerate(betas, 1)} | {"eps": hidden.get("eps")}
        for key, value in shown(plan)[group["role"]].items():
            assert value == used[key], (group["role"], key)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_betas_that_follow_the_schedule_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table said so for all betas, also for hadam's AdamW, which has its own."""
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)
    before, of_rule = trained(planned(name, {})), sp.transfer
    monkeypatch.setattr(sp, "transfer", lambda s: replace(of_rule(s), scheduled_betas=True))
    monkeypatch.setattr(super_mup, "betas", lambda fraction: (0.3, 0.4))  # so far away that signs change, too
    plan = planned(name, {})
    named = re.search(r"of ([a-z_, ]+) follow the schedule", describe(plan, OPTIMIZERS.facts(name)))
    assert differing(before, trained(plan)) == set(named[1].split(", ") if named else ())


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_momentum_and_cautious_decay_act_where_the_facts_say_so(name: str) -> None:
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)
    facts, plan = OPTIMIZERS.facts(name), planned(name, {})
    before, text = trained(plan), describe(plan, facts)
    acts = differing(before, trained(planned(name, {}, {"muon_beta": 0.5})))
    assert bool(acts) == ("muon momentum 0.95" in text) == facts.plan_momentum
    if facts.cautious_decay:
        decayed = {role for role in PRESENT if plan.roles[role].weight_decay}
        assert differing(before, trained(planned(name, {}, cautious_weight_decay=True))) == decayed
    else:
        with pytest.raises(UserError, match="--cautious_weight_decay is not known"):
            planned(name, {}, cautious_weight_decay=True)


def shrunk(plan: Plan) -> dict[str, float]:
    """Role -> what STEPS steps without a gradient take off its weights, as a share."""
    bag, start = Bag(), Bag()
    optimizer = build(bag, plan.optimizer, plan)
    for _ in range(STEPS):
        set_hyperparameters(optimizer, step_values(plan, 0, plan.context))
        for p in bag.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    first = {role: next(k for k, (r, _) in SHAPES.items() if r == role) for role in PRESENT}
    norms = {k: [b.get_parameter(k).detach().norm().item() for b in (bag, start)] for k in first.values()}
    return {role: 1 - norms[k][0] / norms[k][1] for role, k in first.items()}


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(("name", "args"), [case for case in CASES if case[0] not in OWN_DECAY])
def test_a_step_shrinks_weights_as_the_plan_says(name: str, args: dict[str, Any], independent: bool) -> None:
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)
    plan = planned(name, args, {"weight_decay": 0.01 if independent else 0.1}, independent_weight_decay=independent)
    roles = {role: plan.roles[role] for role in PRESENT}
    each = {role: r.weight_decay * (1 if independent else r.lr) for role, r in roles.items()}
    if args.get("constraint"):
        assert set(each.values()) == {0.0}, "the rate shrinks them"
        each = {role: r.lr for role, r in roles.items()}
    assert shrunk(plan) == pytest.approx({role: 1 - (1 - share) ** STEPS for role, share in each.items()}, abs=2e-6)


@pytest.mark.parametrize("name", ["scion", "scion_light"])
def test_constrained_scion_has_no_other_decay(name: str) -> None:
    """The Plan's decay was added, so that weights stayed in a smaller ball than the radius (arXiv:2502.07529)."""
    with pytest.raises(UserError, match=f"Nothing is decayed by --optimizer {name}"):
        planned(name, {"constraint": True}, {"weight_decay": None}, weight_decay_rule="power_lines")
    assert planned(name, {"constraint": False}).roles["matrix"].weight_decay == 0.1


@pytest.mark.parametrize("name", ["lamb", "prodigy"])
def test_a_decay_that_cannot_be_independent_is_refused(name: str) -> None:
    """The Plan said so, and LAMB took |W| / |r| times the share off, Prodigy d times: 1e-6 of it at first."""
    with pytest.raises(UserError, match=f"--independent_weight_decay takes a fixed share .* of {name} is times a rate"):
        planned(name, {}, independent_weight_decay=True)
    assert planned(name, {}, {"weight_decay": 0.0}, independent_weight_decay=True).independent_weight_decay


def test_betas_of_a_rule_are_hadams_too() -> None:
    """Under `baseline` tables have 0.8 and 0.995, since their rows are seen seldom; hadam trained them with 0.95."""
    run = run_of(train_model="baseline", optimizer="hadam", parameterization="baseline", depth=8)
    plan = replace(plan_of(run), counts=dict.fromkeys(PRESENT, 1))
    text = describe(plan, OPTIMIZERS.facts("hadam"))
    assert "beta1 0.8, beta2 0.95, eps 1e-10" in text
    for row in (
        "embedding .* adamw 0.8, 0.995  ",
        "head .* adamw 0.8, 0.96  ",
        "matrix .* nadam 0.9, 0.95, eps 1e-08 ",
    ):
        assert re.search(f"\n{row}", text), row
