"""From soft figures to accuracies: the sigmoid, its floor, and figures that cannot say."""

from __future__ import annotations

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.intervals import draw, noise_of, prediction
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.two_stages import Sigmoid, fit_sigmoid, refit

SOFT = np.linspace(0.4, 1.6, 14)
TRUE = Sigmoid(5.0, 0.95, 0.25)


def noisy(size: float = 0.01) -> np.ndarray:
    return np.clip(TRUE(SOFT) + size * np.random.default_rng(0).standard_normal(len(SOFT)), 0, 1)


def test_scipy_finds_the_same():
    optimize = pytest.importorskip("scipy.optimize")
    hard = noisy()
    found = fit_sigmoid(SOFT, hard)

    def model(x: np.ndarray, slope: float, middle: float, floor: float) -> np.ndarray:
        return floor + (1 - floor) / (1 + np.exp(slope * (x - middle)))

    other, _ = optimize.curve_fit(model, SOFT, hard, p0=(4.0, 1.0, 0.2), xtol=1e-14, ftol=1e-14)
    assert (found.slope, found.middle, found.floor) == pytest.approx(tuple(other), rel=2e-3)


def test_a_refit_is_the_fit():
    hard = noisy()
    near = fit_sigmoid(SOFT, TRUE(SOFT), floor=0.25)
    (again,) = refit(near, SOFT, hard[None], np.ones((1, len(SOFT))), pinned=True)
    alone = fit_sigmoid(SOFT, hard, floor=0.25)
    assert (again.slope, again.middle, again.floor) == pytest.approx((alone.slope, alone.middle, 0.25), rel=1e-3)


def test_units_of_the_soft_figure_do_not_matter():
    hard = noisy()
    one, two = fit_sigmoid(SOFT, hard), fit_sigmoid(1000 * SOFT, hard)
    assert (one.middle, one.slope) == pytest.approx((two.middle / 1000, two.slope * 1000), rel=1e-3)


def test_both_stages_make_a_prediction():
    law = law_named("soft_to_hard")
    assert law.example is not None
    example = law.example()
    fitted = law.fit(example.data, {"floor": 0.25})
    assert fitted.place is not None
    compute = 1e24
    soft = 60 * compute**-0.1 + 0.3
    assert fitted.curve(fitted.place(compute))[0] == pytest.approx(float(TRUE(soft)), rel=1e-3)


def test_a_new_run_has_a_soft_figure_of_its_own():
    """Its noise was left out of the prediction, so that 90% intervals held 58% of new runs at 1e21."""
    law, rng, inside, at = law_named("soft_to_hard"), np.random.default_rng(0), 0, {"x": np.array([1e21])}
    x = np.geomspace(1e18, 1e23, 16)
    for seed in range(40):
        soft = 60 * x**-0.1 + 0.3 + 0.03 * rng.standard_normal(16)
        data = {"x": x, "soft": soft, "hard": np.clip(TRUE(soft) + 0.01 * rng.standard_normal(16), 0.01, 0.99)}
        fitted = law.fit(data, {"floor": 0.25})
        draws = draw(law, fitted, data, {"floor": 0.25}, noise_of(law, fitted, data), 100, seed)
        low, high = prediction(law, draws, at, 0.9, seed)
        new = TRUE(60 * 1e21**-0.1 + 0.3 + 0.03 * rng.standard_normal()) + 0.01 * rng.standard_normal()
        inside += bool(low[0] <= new <= high[0])
    assert inside >= 31, "90% of 40 are 36, with a standard deviation of 1.9"


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(UserError, match="from 0 to 1"):
        fit_sigmoid(SOFT, 100 * noisy())
    with pytest.raises(UserError, match="does not rise as the other figure falls"):
        fit_sigmoid(SOFT, noisy()[::-1])
    with pytest.raises(UserError, match=r"The floor is 1\.2"):
        fit_sigmoid(SOFT, noisy(), floor=1.2)
    chance = 0.25 + 0.005 * np.linspace(1, 0, 14)
    assert any("no accuracy is above chance" in note for note in fit_sigmoid(SOFT, chance, floor=0.25).notes)
    early = fit_sigmoid(SOFT + 1, TRUE(SOFT + 1) + 1e-4 * np.linspace(1, 0, 14), floor=0.2499)
    assert any("middle of the sigmoid lies outside" in note for note in early.notes)
