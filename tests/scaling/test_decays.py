"""Schedules with decays in tokens, against a table of the corners and straight lines between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lit_gpt.config.words import read_ends
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Decay, Schedule
from lit_gpt.scaling.schedule import fraction, period_end, plan_decays


def test_linear_decays_are_straight_lines():
    decays = plan_decays([1000, 2000, 4000], 100, None, 0.25, lower_peaks=True)
    assert [d.start for d in decays] == [775, 1525, 3025]
    schedule = Schedule("wsd_s", 100, 4000, 0.1, "linear", 0.25, decays)
    peaks = [1.0, 0.5**0.5, 0.5]
    for n, (first, d, peak) in enumerate(zip((100, 1000, 2000), decays, peaks)):
        at = np.linspace(first + 1, d.end - 1, 97)
        corners = [0, d.start, d.end], [peak, peak, peak * 0.1]
        assert [fraction(schedule, t) for t in at] == pytest.approx(np.interp(at, *corners).tolist(), rel=1e-12), n
    assert fraction(schedule, 50) == 0.5 and fraction(schedule, 4000) == pytest.approx(0.05)
    assert [period_end(schedule, t) for t in (0, 999, 1000, 3999, 4000)] == [1000, 1000, 2000, 4000, 4000]


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_a_decay_in_tokens_is_the_same_share(shape):
    """wsd over its last quarter, and over so many tokens."""
    share = Schedule("wsd", 80, 1080, 0.1, shape, 0.25)
    tokens = dataclasses.replace(share, decays=plan_decays([1080], 80, 250, 0.5, lower_peaks=False))
    assert tokens.decays == (Decay(830, 1080),)
    for t in np.linspace(0, 1079, 500):
        assert fraction(tokens, t) == pytest.approx(fraction(share, t), rel=1e-9)


@pytest.mark.parametrize(
    ("ends", "length", "said"),
    [
        ([1000, 1200], 300, "the decay before it ends at 1,000"),
        ([150], 100, "warm-up lasts until 100"),
        ([200], 0, "0 tokens, fewer than the 8 of a step"),
        ([1000, 1200], 7, "7 tokens, fewer than the 8 of a step"),
    ],
)
def test_decays_that_overlap(ends, length, said):
    with pytest.raises(UserError, match=said):
        plan_decays(ends, 100, length, 0.1, lower_peaks=False, batch=8)


def test_ends():
    assert read_ends(["0.5x", "1x", "2x"], 999) == [499, 999, 1998]
    assert read_ends(["500k", "1M", "2x"], 1_000_000) == [500_000, 1_000_000, 2_000_000]
    for wrong in ([], ["2x", "1x"], ["1M", "1M"], ["x"], ["-1M"], ["1/0x"], ["soon"], ["1e99999999x"]):
        with pytest.raises((ValueError, ZeroDivisionError)):
            read_ends(wrong, 1000)
