"""Schedules against tables by hand and against torch's schedulers where they coincide."""

from __future__ import annotations

from math import cos, pi, sqrt
from typing import Any

import pytest
import torch
from pytest import approx
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from lit_gpt.scaling.base import Schedule
from lit_gpt.scaling.schedule import fraction

WARM, TOTAL, FINAL = 100, 1100, 0.2  # p = (t - 100) / 1000
WARMUP = {0: 0.0, 1: 0.01, 50: 0.5, 99: 0.99, 100: 1.0}


def schedule(name: Any, warmup: float = WARM, final: float = FINAL, **fields: Any) -> Schedule:
    return Schedule(name, warmup, TOTAL, final, **fields)


@pytest.mark.parametrize(
    ("name", "after_warmup"),
    [
        ("linear", {350: 0.8, 600: 0.6, 850: 0.4, 1099: 0.2008, 1100: 0.2}),
        # 0.2 + 0.8 (1 + cos(pi p)) / 2: at p = 1/4 and 3/4 the cosine is +-0.7071067812
        ("cosine", {350: 0.8828427125, 600: 0.6, 850: 0.3171572875, 1100: 0.2}),
        ("constant", {350: 1.0, 600: 1.0, 1100: 1.0}),
        ("cos_inf", {350: 0.8828427125, 600: 0.6, 1100: 0.2}),  # without a constant end
        # flat to p = 5/7, t = 814.2857; then 2000/7 tokens of decay
        ("wsd", {350: 1.0, 814: 1.0, 957.142857142857: 0.6, 1028.571428571429: 0.4, 1100: 0.2}),
    ],
)
def test_tables(name: str, after_warmup: dict[float, float]) -> None:
    table = {**WARMUP, **after_warmup}
    assert {t: fraction(schedule(name), t) for t in table} == approx(table)


@pytest.mark.parametrize(
    ("decay", "quarter", "half"),
    [
        ("linear", 0.8, 0.6),
        ("cosine", 0.8828427125, 0.6),
        ("1-sqrt", 0.6, 0.4343145751),  # 0.2 + 0.8 (1 - 0.5); 0.2 + 0.8 (1 - 0.7071067812)
        ("square", 0.95, 0.8),  # 0.2 + 0.8 (1 - 1/16); 0.2 + 0.8 (1 - 1/4)
        ("mirror_cosine", 0.7171572875, 0.6),  # twice linear less cosine: 1.6 - 0.8828427125
        ("exp", 0.6687403050, 0.4472135955),  # 0.2 to the power of 1/4 and of 1/2
    ],
)
def test_tails_of_wsd(decay: Any, quarter: float, half: float) -> None:
    s = schedule("wsd", decay=decay, decay_fraction=0.2)  # decays over the last 200 of 1000 tokens
    assert [fraction(s, t) for t in (100, 899, 900)] == [1, 1, 1]
    assert [fraction(s, t) for t in (950, 1000, 1100)] == approx([quarter, half, 0.2])


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_beyond_the_end_the_final_fraction_stays(name: str) -> None:
    assert [fraction(schedule(name), t) for t in (TOTAL, TOTAL + 1, 10 * TOTAL)] == [FINAL] * 3
    assert fraction(schedule(name, final=0.0), TOTAL) == 0.0


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "constant"])
def test_without_warmup_it_starts_at_the_peak(name: str) -> None:
    assert fraction(schedule(name, warmup=0), 0) == 1.0


def test_cos_inf_is_a_cosine_and_then_its_final_rate() -> None:
    s = schedule("cos_inf", constant_end=500)  # the cosine ends at 600, its middle is at 350
    assert [fraction(s, t) for t in (50, 225, 350, 475, 600, 601, 1099, 1100)] == approx(
        [0.5, 0.8828427125, 0.6, 0.3171572875, 0.2, 0.2, 0.2, 0.2]
    )


def test_none_is_one_rate_without_a_warmup() -> None:
    assert {fraction(schedule("none", warmup=0), t) for t in range(0, TOTAL + 2, 50)} == {1.0}


SHAPES = ["linear", "cosine", "1-sqrt", "square", "mirror_cosine", "exp"]


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("decay", SHAPES)
def test_it_never_rises_after_warmup_nor_leaves_its_range(name: str, decay: Any) -> None:
    values = [fraction(schedule(name, decay=decay), t) for t in range(WARM, TOTAL + 2)]
    assert values == sorted(values, reverse=True)
    assert max(values) == 1.0
    assert min(values) == approx(FINAL)


def test_wsd_that_decays_all_the_way_is_the_plain_schedule() -> None:
    for name in ("linear", "cosine"):
        whole = schedule("wsd", decay=name, decay_fraction=1.0)
        times = range(0, TOTAL + 1, 7)
        assert [fraction(whole, t) for t in times] == approx([fraction(schedule(name), t) for t in times])


@pytest.mark.parametrize("final", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("decay", SHAPES)
def test_decays_against_the_formulas_of_the_benchmark(decay: Any, final: float) -> None:
    """Each written out once more as in arXiv:2509.01440's code, over the last 300 of 1000 steps."""
    s = Schedule("wsd", 0, 1000, final, decay, 0.3)
    for step in range(700, 1000, 7):
        x = (step - 700) / 300
        line, wave = final + (1 - final) * (1 - x), final + (1 - final) * (1 + cos(pi * x)) * 0.5
        expected = {
            "linear": line,
            "cosine": wave,
            "mirror_cosine": 2 * line - wave,
            "square": final + (1 - final) * (1 - x**2),
            "1-sqrt": final + (1 - final) * (1 - sqrt(x)),
            "exp": final**x,
        }
        assert fraction(s, step) == approx(expected[decay])


class Bare(torch.optim.Optimizer):
    """A learning rate and nothing to train (a real constructor imports the whole compiler)."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 1.0}]

    def step(self, closure: Any = None) -> Any:
        return closure


def torch_rates(make: Any, steps: int) -> list[float]:
    optimizer = Bare()
    scheduler: LRScheduler = make(optimizer)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_torch_agrees(final: float) -> None:
    steps = 37
    linear, cosine = (Schedule(name, 0, steps, final) for name in ("linear", "cosine"))
    expected = torch_rates(lambda o: LinearLR(o, 1.0, final, total_iters=steps), steps)
    assert [fraction(linear, t) for t in range(steps + 1)] == approx(expected, abs=1e-12)
    expected = torch_rates(lambda o: CosineAnnealingLR(o, steps, eta_min=final), steps)
    assert [fraction(cosine, t) for t in range(steps + 1)] == approx(expected, abs=1e-12)
    warm = Schedule("constant", 10, steps)
    expected = torch_rates(lambda o: LinearLR(o, 0.1, 1.0, total_iters=9), 20)
    assert [fraction(warm, t + 1) for t in range(21)] == approx(expected)


def test_formulas_at_odd_places() -> None:
    s = Schedule("wsd", 1e9, 9.5e9, 0.1, "1-sqrt", 0.25)
    p = (9e9 - 1e9) / 8.5e9
    assert fraction(s, 9e9) == approx(0.1 + 0.9 * (1 - sqrt((p - 0.75) / 0.25)))
    assert fraction(Schedule("cosine", 1e9, 9.5e9, 0.1), 9e9) == approx(0.1 + 0.45 * (1 + cos(pi * p)))
