"""An optimizer is one file: its facts, its rules, and no table elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_optimizers import Bag, build, gradients, options, plan_for
from torch import Tensor

import lit_gpt.optim
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import LEARNED_ROLES, Plan

FOLDER = Path(lit_gpt.optim.__file__).parent
FILES = sorted(name for name in OPTIMIZERS.names() if name not in EXTERNAL)


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts a file with a text into a second folder of the optimizers."""
    monkeypatch.setattr(lit_gpt.optim, "__path__", [*lit_gpt.optim.__path__, str(tmp_path)])
    names = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        names.append(f"lit_gpt.optim.{name}")

    yield write
    for name in names:
        sys.modules.pop(name, None)


def planned(optimizer: str, tmp_path: Path) -> Plan:
    typed = RunConfig(train_model="transformer", depth=16, train_name="x", optimizer=optimizer, vocab_size=32000)
    return resolve_run(
        replace(typed, parameterization="mupp", train_data_dir=str(tmp_path), out_dir=str(tmp_path)), 1
    ).plan


def trained(optimizer: str, args: dict[str, Any]) -> dict[str, Tensor]:
    bag = Bag()
    stepped = build(bag, optimizer, **args)
    for step in range(3):
        for name, g in gradients(step).items():
            bag.get_parameter(name).grad = g
        stepped.step()
    return {name: p.detach() for name, p in bag.named_parameters()}


@pytest.mark.parametrize("name", FILES)
def test_a_copy_under_another_name_is_the_same_optimizer(
    name: str, add: Callable[[str, str], None], tmp_path: Path
) -> None:
    """A copy of muon.py planned with Adam's rule, 0.000212 for matrices, and died in training with KeyError."""
    add(f"{name}_copied", (FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    here, there = planned(name, tmp_path), planned(f"{name}_copied", tmp_path)
    rules = {role: replace(r, update_rule=here.roles[role].update_rule) for role, r in there.roles.items()}
    assert replace(there, optimizer=name, roles=rules) == here
    if name == "muon":
        assert there.roles["matrix"].lr == pytest.approx(0.000424, abs=1e-6)
    weights, copied = trained(name, options(name)), trained(f"{name}_copied", options(name))
    assert all(torch.equal(weights[key], copied[key]) for key in weights)


def test_no_facts_are_an_error_at_the_plan(add: Callable[[str, str], None], tmp_path: Path) -> None:
    add("silent", (FOLDER / "muon.py").read_text(encoding="utf-8").replace("FACTS =", "facts ="))
    with pytest.raises(
        UserError, match=r"The optimizer silent does not state its facts.*OptimizerFacts\(\.\.\.\) in .*silent"
    ):
        planned("silent", tmp_path)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_facts_fit_the_rules(name: str) -> None:
    """Every role has an update rule; of a file with `rules`, one that it makes."""
    facts = OPTIMIZERS.facts(name)
    assert set(facts.rules) <= set(LEARNED_ROLES)
    made = getattr(OPTIMIZERS.load(name), "rules", None)
    if made is not None:
        assert {facts.rule(role).name for role in LEARNED_ROLES} == set(made(plan_for(name)))
    else:
        assert {rule.name for rule in facts.rules.values()} == {name}


def test_plans_that_say_method_are_read() -> None:
    """Of runs before the field was called update_rule."""
    plan = plan_for("muonh")
    stored = json.loads(json.dumps(plan.to_dict()))
    for role in stored["roles"].values():
        role["method"] = role.pop("update_rule")
    assert Plan.from_dict(stored) == plan
