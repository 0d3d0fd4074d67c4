"""The critical batch: the hyperbola of steps and tokens, and the steps at which batches reach a loss."""

from __future__ import annotations

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.batches import Hyperbola, hyperbola_problem, judged, steps_to_loss
from lit_gpt.scaling.laws import law_named

BATCHES = 2.0 ** np.arange(16, 24)
LAW = Hyperbola(3e3, 3e9)


def fitted(batch: np.ndarray, steps: np.ndarray) -> tuple[Hyperbola, tuple[str, ...]]:
    problem = hyperbola_problem(batch)
    return judged(problem.read(problem.fit(steps)), batch, steps)


def test_the_hyperbola_is_that_of_the_paper():
    """(S / S_min - 1) (D / D_min - 1) = 1; twice the least of both at the critical batch."""
    steps = LAW(BATCHES)
    np.testing.assert_allclose((steps / 3e3 - 1) * (steps * BATCHES / 3e9 - 1), 1.0, rtol=1e-9)
    assert float(LAW(LAW.critical)) == pytest.approx(2 * 3e3)
    assert float(LAW(LAW.critical)) * LAW.critical == pytest.approx(2 * 3e9)


def test_the_batch_of_a_fifth_more_steps():
    """arXiv:2410.21676, Y = a + b / B from 256 sequences: b / (5 a) + 1.2 x 256."""
    law = Hyperbola(2000.0, 6e5)
    batch = law.with_overhead(256)
    assert batch == pytest.approx(6e5 / (5 * 2000) + 1.2 * 256)
    assert float(law(batch)) == pytest.approx(1.2 * float(law(256)) * 256 / batch)


def test_scipy_finds_the_same():
    optimize = pytest.importorskip("scipy.optimize")
    steps = LAW(BATCHES) * np.exp(0.01 * np.random.default_rng(0).standard_normal(8))
    found, _ = fitted(BATCHES, steps)

    def left(point: np.ndarray) -> np.ndarray:
        return np.log(np.exp(point[0]) + np.exp(point[1]) / BATCHES) - np.log(steps)

    other = np.exp(optimize.least_squares(left, np.log([1e3, 1e9]), x_scale=1.0, xtol=1e-14, ftol=1e-14).x)
    assert (found.least_steps, found.least_tokens) == pytest.approx(tuple(other), rel=1e-4)


def test_what_the_batches_do_not_show_is_said():
    linear, notes = fitted(BATCHES, 3e9 / BATCHES)
    assert np.isnan(linear.least_steps) and "add runs with larger batches" in notes[0]
    flat, notes = fitted(BATCHES, np.full(8, 3e3))
    assert np.isnan(flat.least_tokens) and "add runs with smaller batches" in notes[0]
    _, notes = fitted(BATCHES[:3], LAW(BATCHES[:3]))
    assert "lies outside the batches" in notes[0]
    with pytest.raises(UserError, match="needs 3 different batch"):
        hyperbola_problem(BATCHES[:2])


def test_batches_that_do_not_reach_the_loss_are_left_out():
    batch, times = np.repeat(BATCHES, 6), np.tile(np.geomspace(0.5, 2.0, 6), 8)
    loss = 1.7 + 1.3 * times**-0.3
    loss[:6] += 1.0
    reached, notes = steps_to_loss(batch, LAW(batch) * times, loss, 3.0)
    np.testing.assert_allclose(reached.steps, LAW(BATCHES[1:]), rtol=1e-3)
    assert notes == ("the runs of batch 6.554e+04 have no loss on both sides of 3, and are left out",)
    with pytest.raises(UserError, match="0 batches reach the loss 1, and this needs 3"):
        steps_to_loss(batch, LAW(batch) * times, loss, 1.0)


def test_the_target_is_the_lowest_loss_that_all_reach():
    batch, times = np.repeat(BATCHES[:4], 6), np.tile(np.geomspace(0.5, 2.0, 6), 4)
    loss = 1.7 + 1.3 * times**-0.3
    data = {"batch": batch, "steps": LAW(batch) * times, "loss": loss}
    found = law_named("critical_batch_budgets").fit(data, {})
    assert found.numbers["target"] == pytest.approx(loss.min())
    assert found.numbers["critical"] == pytest.approx(1e6, rel=1e-2)
    assert list(found.tables) == [f"Steps to the loss {loss.min():.4f}"]
