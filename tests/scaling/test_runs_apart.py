"""Runs in another unit, or that diverged, in laws that are fitted with Huber's function or become flat by them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.fit import PowerLaw, fit_power_law
from lit_gpt.scaling.intervals import noisy, without_each
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.sweeps import fit_optima, refit

FLOPS = np.geomspace(1e18, 1e21, 7)


def runs_of(name: str) -> Data:
    """Those of the law's example, with a third of their noise."""
    law = law_named(name)
    assert law.example is not None
    example = law.example()
    y = example.data[law.explains]
    by = 0.3 * example.noise * np.random.default_rng(0).standard_normal(len(y))
    return {**example.data, law.explains: noisy(replace(law, relative=True), y, by)}


def test_a_run_that_makes_a_law_flat_is_named() -> None:
    loss = PowerLaw(1e3, 0.15, 1.7)(FLOPS) + 0.003 * np.random.default_rng(0).standard_normal(7)
    loss[5] = 9.8
    found = fit_power_law(FLOPS, loss)
    assert found.b == 0
    assert any(f"x = {FLOPS[5]:.4g}, y = 9.8 (" in note and "outlier" in note for note in found.notes)


@pytest.mark.parametrize("name", ["moe_joint", "moe_granularity", "speed_up", "critical_batch"])
def test_a_run_that_the_fit_does_not_heed_is_named(name: str) -> None:
    law, data = law_named(name), runs_of(name)
    assert not any("far from the law" in note for note in law.fit(data, {}).notes)
    data[law.explains][3] *= 1.4427  # bits instead of nats
    assert any(f"{law.explains} = {data[law.explains][3]:.4g}" in note for note in law.fit(data, {}).notes)


def test_a_batch_in_millions_of_tokens_is_no_critical_batch_without_a_word() -> None:
    data = runs_of("critical_batch")
    data["batch"][2] /= 1e6
    assert any("noise without a law" in note for note in law_named("critical_batch").fit(data, {}).notes)


@pytest.mark.parametrize("name", ["moe_joint", "moe_granularity"])
def test_numbers_that_the_runs_leave_open_are_not_printed(name: str) -> None:
    law, data = law_named(name), runs_of(name)
    found = law.fit({**data, "L": np.full(len(data["L"]), 3.0)}, {})
    assert all(np.isnan(value) for value in found.numbers.values()) and "leave the numbers open" in found.notes[0]


def test_an_offset_of_none_is_said_and_leaves_the_other_numbers() -> None:
    law, data = law_named("moe_granularity"), runs_of("moe_granularity")
    found = law.fit({**data, "L": data["L"] - 0.47 - 0.1}, {})
    assert found.numbers["c"] == 0 and np.isfinite(list(found.numbers.values())).all()
    assert found.notes[0].startswith("c is at its bound 0") and found.free == 6


def test_fewer_runs_than_numbers_are_no_law_without_a_run() -> None:
    """Five runs determine five numbers, and four of them no law, although a descent ends somewhere."""
    law, data = law_named("chinchilla"), runs_of("chinchilla")
    some = {name: column[[0, 5, 14, 20, 35]] for name, column in data.items()}
    assert not any(without_each(law, law.fit(some, {}), some, {}))


def test_optima_of_one_x_have_no_law_with_a_constant_and_no_warning_of_numpy() -> None:
    rate = 0.01 * np.exp(np.linspace(-1, 1, 6))
    loss = 3 + 0.04 * np.log(rate / 0.01) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_optima(np.full(6, 1e10), rate, loss, constant=None)
        refit(np.full(6, 1e10), rate, np.stack([loss, -loss]), np.ones((2, 6)), constant=None)
    assert np.isnan(found.a) and found.optima[0].best == pytest.approx(0.01)


def test_a_refusal_has_the_bad_numbers_and_not_all_of_them() -> None:
    with pytest.raises(UserError, match="got y = -1, nan in 2 of 200 runs"):
        positive(1, y=np.r_[np.ones(198), -1.0, np.nan])
