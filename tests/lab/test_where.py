"""Expressions over runs: what they choose, what a missing value does, and what they refuse."""

from __future__ import annotations

import math

import pytest

from lit_gpt.errors import UserError
from lit_gpt.lab.runs import Run
from lit_gpt.lab.where import matching, numbers, values

RUNS = [
    Run(
        "small", None, "finished", {"optimizer": "muonh", "depth": 8, "base_hps.eta0": 0.004}, {"loss": 2.5, "depth": 8}
    ),
    Run(
        "large", None, "finished", {"optimizer": "adamw", "depth": 16}, {"loss": 1.5, "depth": 16, "suite/acc@480": 0.5}
    ),
    Run("begun", None, "without an end", {"optimizer": "adamw", "odd name": 1}, {"depth": 16, "tokens": 64}),
]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("depth == 8 and loss < 3", ["small"]),
        ("loss < 2 or loss >= 2", ["small", "large"]),  # of a missing loss, both are false
        ("not loss < 2", ["small", "begun"]),
        ("loss == None", ["begun"]),
        ("loss is None", ["begun"]),
        ("loss != None", ["small", "large"]),
        ("optimizer == 'adamw'", ["large", "begun"]),
        ("'muon' in optimizer", ["small"]),
        ("optimizer in ('muonh', 'lion')", ["small"]),
        ("depth not in [8]", ["large", "begun"]),
        ("8 <= depth < 16", ["small"]),
        ("base_hps.eta0 * 1000 > 3", ["small"]),
        ("suite/acc@480 >= 0.5", ["large"]),
        ("`suite/acc@480` >= 0.5", ["large"]),
        ("`odd name` == 1", ["begun"]),
        ("state == 'finished' and name != 'large'", ["small"]),
        ("log10(loss) < 0.3 and max(depth, 3) > 3", ["large"]),
        ("tokens", ["begun"]),
        ("-depth ** 2 == -64", ["small"]),
        ("(depth if loss else 1) == 16", ["large"]),
        ("optimizer in 'muonh, lion'", ["small"]),
    ],
)
def test_what_is_chosen(text: str, chosen: list[str]) -> None:
    assert [run.name for run in matching(RUNS, text)] == chosen


def test_values_of_a_column_a_setting_or_an_expression() -> None:
    assert values(RUNS, "odd name") == [None, None, 1]
    assert values(RUNS, "optimizer") == ["muonh", "adamw", "adamw"]
    assert values(RUNS, "tokens / depth") == [None, None, 4.0]
    found = numbers(RUNS, "loss")
    assert found[:2].tolist() == [2.5, 1.5] and math.isnan(found[2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dept == 8", "Did you mean 'depth'"),
        ("optimizer == muonh", "Put text in quotes"),
        ("depth = 8", "== for equal"),
        ("", "is no expression"),
        ("`", "is no expression"),
        ("__import__('os').system('true')", "no run has|not allowed"),
        ("(lambda: 1)()", "not allowed"),
        ("[x for x in (1, 2)]", "not allowed"),
        ("name.upper()", "not allowed"),
        ("depth.__class__", "no run has"),
        ("max(*depth)", "not allowed"),
        ("open('/etc/passwd')", "not allowed"),
        ("'a' * 1000000000", "arithmetic with text"),
        ("(1, 2) * 1000000000", "arithmetic with text"),
        ("9 ** 9 ** 9 ** 9", "cannot be computed"),
        ("1 / (depth - depth) > 1", "cannot be computed"),
        ("optimizer < 3", "cannot be computed"),
        ("(" * 300 + "1" + ")" * 300, "is no expression"),
        ("-" * 1500 + "1", "cannot be computed|is no expression"),
        ("f'{depth}'", "not allowed"),
        ("depth << 100000000000", "not allowed"),
        ("quoted__3 == 1", "no run has"),
        ("b'x' == name", "not allowed"),
    ],
)
def test_what_is_refused_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        matching(RUNS, text)
