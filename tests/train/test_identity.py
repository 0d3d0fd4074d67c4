"""What makes a run this run, as runs of earlier versions wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import folder_of, make_corpus, run, words

from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.identity import identity, known_as

RULES: dict[str, dict[str, Any]] = {
    "baseline": {"train_model": "baseline", "schedule": "wsd", "ar": 8},
    "completep": {},
}
CASES = [("adan", "baseline"), ("signum", "baseline"), ("muon", "completep"), ("signum", "completep")]


def found(optimizer: str, rule: str) -> dict[str, Any]:
    options = RULES[rule] | {"optimizer": optimizer, "parameterization": rule, "train_name": None, "depth": 4}
    return identity(resolve_run(parse(words(None, "out", **options)), 1))


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_a_run_whose_plan_had_what_nothing_reads_can_be_resumed(name: str, rule: str) -> None:
    """Plans had betas and a factor on eps for every role; without them the same run would be another one."""
    now, of_rule = found(name, rule), found("adamw", rule)["plan"]["roles"]
    written = {
        role: values | {key: of_rule[role][key] for key in ("betas", "eps_factor")}
        for role, values in now["plan"]["roles"].items()
    }
    assert written != now["plan"]["roles"]
    assert known_as({**now, "plan": {**now["plan"], "roles": written}}) == now


def test_a_run_that_had_other_betas_than_its_plan_is_another_one() -> None:
    """The Plan of hadam under `baseline` was the same when it trained tables with 0.8 and 0.95."""
    now = found("hadam", "baseline")
    replaced = now["numerics"]["betas_of_the_rule"]
    assert {"embedding", "value_table", "scalar"} <= {*replaced} and "matrix" not in replaced
    earlier = {key: value for key, value in now["numerics"].items() if key != "betas_of_the_rule"}
    assert known_as(now) == now != known_as({**now, "numerics": earlier})
    assert all("betas_of_the_rule" not in found(*case)["numerics"] for case in CASES)


def test_what_no_option_explains_asks_for_the_code_and_the_data(tmp_path: Path, capsys: Any) -> None:
    data, options = make_corpus(tmp_path, 4), {"max_tokens": 2048}
    assert run(data, tmp_path / "out", **options) == 0
    path = folder_of(tmp_path / "out") / "plan.json"
    plan = json.loads(path.read_text())
    plan["roles"]["matrix"]["weight_decay"] = 0.25
    path.write_text(json.dumps(plan))
    assert run(data, tmp_path / "out", resume="auto", **options) == 2
    assert "Use the old options, data and version of this code to continue it." in capsys.readouterr().err
