"""pass@k against all subsets, its interval against many draws."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from script_module import script_module

passes = script_module("eval_reason/passes.py")


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(n):
    for right in range(n + 1):
        drawn = [i < right for i in range(n)]
        for k in range(1, n + 1):
            subsets = [any(subset) for subset in combinations(drawn, k)]
            assert passes.pass_at_k(n, right, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_a_score_is_the_mean_over_questions():
    found = passes.mean_pass_at_k([(4, 1), (4, 4), (8, 0)], 2)
    assert found.value == pytest.approx((0.5 + 1 + 0) / 3) and 0 < found.low < found.value < found.high < 1


def test_one_generation_is_wilsons_interval():
    """8 of 10, by the formula's worked values; statsmodels' proportion_confint(8, 10, method="wilson") gives these."""
    found = passes.mean_pass_at_k([(1, 1)] * 8 + [(1, 0)] * 2, 1)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize("right", [0, 1])
def test_all_alike_is_not_certain(right):
    found = passes.mean_pass_at_k([(1, right)] * 30, 1)
    assert found.value == right and found.high - found.low > 0.05


def test_generations_narrow_an_interval_up_to_their_number():
    """Questions that are all answered half the time: as sure as one generation of each of 40 questions, not surer."""
    alike = passes.mean_pass_at_k([(4, 2)] * 10, 1)
    more = passes.mean_pass_at_k([(1, i % 2) for i in range(40)], 1)
    assert (alike.low, alike.high) == pytest.approx((more.low, more.high))


@pytest.mark.parametrize(("questions", "n", "k"), [(30, 1, 1), (30, 16, 1), (30, 16, 8), (200, 4, 1), (100, 8, 4)])
@pytest.mark.parametrize("hardness", [(0.5, 0.5), (2, 1), (1, 6)], ids=str)
def test_intervals_hold_the_truth_as_often_as_they_say(questions, n, k, hardness):
    """95% are meant. Questions are easy and hard as a Beta distribution says; the truth is pass@k over all of it.

    1,000 draws have a standard error of 0.7% at 95%, and skewed distributions of 30 questions are known to cover less.
    """
    draw = random.Random(f"{questions}/{n}/{k}/{hardness}")
    truth = sum(1 - (1 - draw.betavariate(*hardness)) ** k for _ in range(100_000)) / 100_000
    held = 0
    for _ in range(1000):
        easy = [draw.betavariate(*hardness) for _ in range(questions)]
        found = passes.mean_pass_at_k([(n, sum(draw.random() < p for _ in range(n))) for p in easy], k)
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 1000 <= 0.995


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_which_k(most, expected):
    assert passes.sizes(most) == expected
