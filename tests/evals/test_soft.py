"""Soft metrics of lm-eval's logged examples; test_lm_eval.py has them of a model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lit_gpt.evals.soft import soft_metrics


def test_soft_metrics_by_hand():
    """Two choices, ln p -1 and -2, of 4 and 2 bytes; the second is right."""
    resps = [[(-1.0, True)], [(-2.0, False)]]
    sample = {"doc_id": 0, "target": 1, "arguments": [("q", " abc"), ("q", " x")], "resps": resps}
    found = soft_metrics([sample, sample])
    assert math.isclose(found["soft/bits_per_byte"].value, 2 / 2 / math.log(2))
    assert math.isclose(found["soft/choice_p"].value, math.exp(-2) / (math.exp(-1) + math.exp(-2)))
    assert math.isclose(found["soft/choice_p_per_byte"].value, math.exp(-1) / (math.exp(-0.25) + math.exp(-1)))
    assert found["soft/choice_p"].stderr is None, "one example, logged once for each of two filters"


@pytest.mark.parametrize(
    ("target", "texts", "right"),
    [
        ("3", [" 1", " 2", " 3", " 4"], 2),  # a label among the choices, and not number 3 of them
        ("1", [" no", " yes"], 1),
        (2, [" 1", " 2", " 3", " 4"], 2),
        ("b", [" a", " b"], 1),
        ("fell.", [" fell.", " fell."], None),  # winogrande: one answer after two contexts
        (1, [" fell.", " fell."], 1),
        ("c", [" a", " b"], None),
        ("4", [" no", " yes"], None),
    ],
)
def test_the_right_answer_of_soft_metrics(target: Any, texts: list[str], right: int | None):
    """As lm-eval's process_results has it; winogrande's first context was taken for the right one in all questions."""
    totals = [-1.0 - i for i in range(len(texts))]
    sample = {"doc_id": 0, "target": target, "arguments": [(f"q{i}", text) for i, text in enumerate(texts)]}
    found = soft_metrics([sample | {"resps": [[(total, False)] for total in totals]}])
    assert (found == {}) == (right is None)
    if right is not None:
        size = len(texts[right]) * math.log(2)
        assert math.isclose(found["soft/bits_per_byte"].value, -totals[right] / size)


def test_answers_that_are_asked_without_a_context_are_no_choices():
    """acc_mutual_info asks for each once more; the share of the right one was among twice as many."""
    alone = {
        "doc_id": 0,
        "target": 0,
        "arguments": [("q", " a"), ("q", " b")],
        "resps": [[(-1.0, True)], [(-2.0, False)]],
    }
    more = {"arguments": [*alone["arguments"], ("", " a"), ("", " b")], "resps": alone["resps"] * 2}
    assert soft_metrics([alone | more]) == soft_metrics([alone])
