"""Noise, differences and Student's t, beside scipy's and on synthetic runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_gpt.scaling.noise import (
    UNKNOWN,
    Difference,
    Noise,
    difference,
    fit_blocks,
    in_blocks,
    mean,
    paired,
    pooled,
    student,
    student_tail,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("free", [0.5, 1, 2, 3, 4.7, 10, 29.5, 120, 1e4, 1e6])
@pytest.mark.parametrize("level", [0.5, 0.68, 0.95, 0.999, 0.999999])
def test_student_is_scipys(free: float, level: float) -> None:
    expected = stats.t.isf((1 - level) / 2, free)
    assert student(free, level) == pytest.approx(expected, rel=1e-9)
    for t in (0.0, 0.1, 1.0, expected, math.inf):
        assert student_tail(t, free) == pytest.approx(stats.t.sf(t, free), rel=1e-7)


@pytest.mark.parametrize("free", [2e8, math.inf])
def test_student_of_an_error_that_is_known_is_normal(free: float) -> None:
    """It was NaN, and of very many degrees of freedom wrong in the sixth digit, after seconds."""
    known = Difference(1.0, 0.5, free)
    assert known.half() == pytest.approx(0.5 * stats.norm.isf(0.025), rel=1e-8) and not known.is_tie
    assert known.chance == pytest.approx(2 * stats.norm.sf(2.0), rel=1e-7)


def test_differences_are_the_t_tests_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 0.1, 4).tolist(), rng.normal(2.2, 0.3, 6).tolist()
    welch = stats.ttest_ind(b, a, equal_var=False)
    found = difference(a, b)
    assert found.chance == pytest.approx(welch.pvalue, rel=1e-6) and found.free == pytest.approx(welch.df)
    low, high = welch.confidence_interval()
    assert (found.value - found.half(), found.value + found.half()) == pytest.approx((low, high))
    shared = difference(a, b, pooled([a, b]))
    assert shared.chance == pytest.approx(stats.ttest_ind(b, a).pvalue, rel=1e-6)
    pairs = paired(dict(enumerate(a)), dict(enumerate(b)))  # of the four that both have
    assert pairs.chance == pytest.approx(stats.ttest_rel(b[:4], a).pvalue, rel=1e-6)
    assert mean([1.0, 2.0, 4.0]).chance == pytest.approx(stats.ttest_1samp([1, 2, 4], 0).pvalue, rel=1e-6)


def test_pooled_noise_by_hand() -> None:
    """Deviations 1, 1 of means that differ, and a run alone."""
    noise = pooled([[1.0, 3.0], [10.0, 11.0, 12.0], [5.0]])
    assert noise.free == 3 and noise.deviation == pytest.approx(math.sqrt((2 + 2) / 3))
    assert noise.error(4) == pytest.approx(noise.deviation / 2)
    assert noise.error(2, 2) == pytest.approx(noise.deviation)
    assert pooled([[1.0], [2.0]]).free == 0 and math.isnan(pooled([]).deviation)


def test_the_interval_decides() -> None:
    noise = Noise(0.1, 8)
    below, above = difference([2.0], [2.32], noise), difference([2.0], [2.33], noise)  # 2.306 errors are 0.3261
    assert below.is_tie and not above.is_tie
    assert "a tie" in below.in_words() and "more than noise" in above.in_words()
    assert difference([2.0, 2.0], [2.0, 2.0]).is_tie and not difference([2.0, 2.0], [3.0, 3.0]).is_tie


def test_one_repeated_side_says_it_for_both_and_none_says_nothing() -> None:
    found = difference([2.0], [2.1, 2.3])
    assert found.free == 1 and found.error == pytest.approx(math.sqrt(0.02) * math.sqrt(1.5))
    alone = difference([2.0], [3.0])
    assert alone.is_tie and not alone.is_known and math.isnan(alone.half()) and math.isnan(alone.chance)
    assert "no run was repeated" in alone.in_words()
    assert difference([2.0], [3.0], UNKNOWN).is_tie


@pytest.mark.parametrize("counts", [(2, 2), (3, 5), (1, 4)])
def test_intervals_hold_the_truth_as_often_as_they_say(counts: tuple[int, int]) -> None:
    """400 draws of runs whose true difference is 0.3: 95% hold it, within four standard errors of 400 draws."""
    rng, held, draws = np.random.default_rng(sum(counts)), 0, 400
    for _ in range(draws):
        a, b = rng.normal(2.0, 0.1, counts[0]).tolist(), rng.normal(2.3, 0.1, counts[1]).tolist()
        found = difference(a, b, pooled([a, b]))
        held += abs(found.value - 0.3) <= found.half()
    assert abs(held / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


def test_shifts_and_units_do_not_matter() -> None:
    a, b = [2.0, 2.1, 2.05], [2.2, 2.25]
    there, here = difference(a, b), difference([1000 * x + 7 for x in a], [1000 * x + 7 for x in b])
    assert here.chance == pytest.approx(there.chance) and here.half() == pytest.approx(1000 * there.half())


def test_two_treatments_in_blocks_are_the_paired_t_test_of_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6)) + np.arange(6) * 10
    found = in_blocks({(name, i): x for name, of in (("a", a), ("b", b)) for i, x in enumerate(of)}, "a")
    theirs = stats.ttest_rel(b, a)
    low, high = theirs.confidence_interval(0.95)
    assert found["a"].value == pytest.approx(0, abs=1e-9)
    assert found["b"].value == pytest.approx((b - a).mean()) and found["b"].free == theirs.df
    assert found["b"].half() == pytest.approx((high - low) / 2)
    values = {("a", i): x for i, x in enumerate(a)} | {("b", i): x for i, x in enumerate(b)}
    assert fit_blocks(values).noise.error(1, 1) == pytest.approx(np.std(b - a, ddof=1)), "of a pair"


def test_blocks_with_runs_missing() -> None:
    """c meets a in no block, but b in one, and b meets a; d meets nobody."""
    values = {("a", 1): 1.0, ("b", 1): 1.5, ("b", 2): 11.5, ("c", 2): 13.0, ("d", 3): 7.0}
    found = in_blocks(values, "a")
    assert [found[name].value for name in "abc"] == pytest.approx([0.0, 0.5, 2.0])
    assert not any(one.is_known for one in found.values()) and math.isnan(found["d"].value)


@pytest.mark.parametrize("free", [1, 2, 4])
def test_noise_alone_is_called_a_difference_as_seldom_as_it_should(free: int) -> None:
    """Two standard errors called 30%, 18% and 12% of equal sides different, beside intervals that held 0."""
    rng, draws = np.random.default_rng(free), 1000
    found = [mean(rng.standard_normal(free + 1).tolist()) for _ in range(draws)]
    said = sum("more than noise" in one.in_words() for one in found)
    assert abs(said / draws - 0.05) < 4 * math.sqrt(0.05 * 0.95 / draws)
    assert all(one.is_tie == (one.chance >= 0.05) for one in found)
