"""The speed-up between two ladders, and what it needs to know."""

from __future__ import annotations

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.fit import PowerLaw
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.speed import SpeedUp

COMPUTE, VARIANT = np.tile(np.geomspace(1e18, 1e21, 6), 2), np.repeat([1.0, 2.0], 6)
TRUE = SpeedUp(1.4, 0.15, 1.7, 1e3)
SPEED = law_named("speed_up")


def ladders(noise: float = 0.0) -> dict[str, np.ndarray]:
    loss = TRUE(COMPUTE, VARIANT) * np.exp(noise * np.random.default_rng(0).standard_normal(12))
    return {"x": COMPUTE, "variant": VARIANT, "loss": loss}


def test_losses_of_one_budget_have_the_speed_up_and_so_have_inverted_laws():
    """((L_worse - L0) / (L_better - L0))^(1 / alpha), and the ratio of the compute that each needs for one loss."""
    base, better = PowerLaw(1e3, 0.15, 1.7), PowerLaw(1e3 * 1.4**-0.15, 0.15, 1.7)
    for compute in (1e18, 1e21):
        worse, lower = TRUE(np.full(2, compute), np.array([1.0, 2.0]))
        assert ((worse - 1.7) / (lower - 1.7)) ** (1 / 0.15) == pytest.approx(1.4)
        assert (worse, lower) == pytest.approx((base(compute), better(compute)))
        assert base.inverse(lower) / better.inverse(lower) == pytest.approx(1.4)


def test_what_is_given_stays_and_is_said():
    fitted = SPEED.fit(ladders(), {"alpha": 0.15, "offset": 1.7})
    assert fitted.numbers["speed_up"] == pytest.approx(1.4, rel=1e-4)
    assert (fitted.numbers["alpha"], fitted.numbers["offset"]) == pytest.approx((0.15, 1.7))
    assert fitted.free == 2 and fitted.notes[:2] == ("alpha is given", "the offset is given")
    free = SPEED.fit(ladders(), {})
    assert free.notes[:2] == ("alpha is fitted to both ladders", "the offset is fitted to both ladders")
    none = SPEED.fit(ladders(), {"offset": 0.0})
    assert none.numbers["offset"] == 0.0 and none.numbers["alpha"] < 0.15


def test_two_laws_of_their_own_are_inverted():
    """Each ratio is that of the whole fit where the ladders follow one law; no table for short ladders."""
    (rows,) = SPEED.fit(ladders(), {}).tables.values()
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([1.4] * 6, rel=2e-3)
    short = {name: np.r_[column[:6], column[6:9]] for name, column in ladders().items()}
    assert not SPEED.fit(short, {}).tables


def test_ladders_of_different_exponents_are_said():
    data = ladders(noise=2e-4)
    data["loss"][6:] = 1.7 + 500 * COMPUTE[6:] ** -0.13
    assert any("do not share an exponent: the speed-up shrinks" in note for note in SPEED.fit(data, {}).notes)


def test_what_is_no_pair_of_ladders_is_refused():
    with pytest.raises(UserError, match="two ladders"):
        SPEED.fit({**ladders(), "variant": np.ones(12)}, {})
    with pytest.raises(UserError, match="The offset 3 is not below every loss"):
        SPEED.fit(ladders(), {"offset": 3.0})
    rising = {**ladders(), "loss": np.tile(np.linspace(2.0, 3.0, 6), 2)}
    assert any("does not fall with compute" in note for note in SPEED.fit(rising, {}).notes)
