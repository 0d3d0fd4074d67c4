"""Every law of the registry finds the numbers of its own example, and says how sure it is of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.scaling.coverage import NEXT, Covered, coverage
from lit_gpt.scaling.law import Example, Law
from lit_gpt.scaling.laws import LAWS, law_named

NAMES = LAWS.names()


def known(name: str) -> tuple[Law, Example]:
    law = law_named(name)
    if law.example is None:
        pytest.skip("no example yet")
    return law, law.example()


@pytest.mark.parametrize("name", NAMES)
def test_every_law_has_an_example_and_words(name: str):
    law, example = known(name)
    fitted = law.fit(example.data, example.fixed)
    assert set(example.data) >= set(law.reads)
    assert set(example.numbers) <= set(fitted.numbers) <= set(law.parameters), "every number has words"
    assert set(law.fixable) <= set(law.parameters)
    assert (law.sentence + law.formula).isascii() and law.sentence.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_example_are_found(name: str):
    law, example = known(name)
    fitted = law.fit(example.data, example.fixed)
    for number, true in example.numbers.items():
        assert fitted.numbers[number] == pytest.approx(true, rel=2e-3), number
    said = fitted.curve(example.data)
    heard = np.isfinite(said)
    assert heard.mean() > 0.5
    np.testing.assert_allclose(said[heard], example.data[law.explains][heard], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_runs_does_not_matter(name: str):
    law, example = known(name)
    rng = np.random.default_rng(0)
    y = example.data[law.explains]
    noisy = {**example.data, law.explains: y + 0.2 * example.noise * rng.standard_normal(len(y)) * y.mean()}
    order = rng.permutation(len(y))
    one, two = (law.fit({k: v[o] for k, v in noisy.items()}, example.fixed) for o in (np.arange(len(y)), order))
    for number in example.numbers:
        assert one.numbers[number] == pytest.approx(two.numbers[number], rel=1e-4), number


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_are_refused(name: str):
    law, example = known(name)
    with pytest.raises(UserError):
        law.fit({k: v[:2] for k, v in example.data.items()}, example.fixed)


@pytest.mark.parametrize("name", NAMES)
def test_the_fit_of_many_sets_is_that_of_each(name: str):
    law, example = known(name)
    if law.many is None:
        pytest.skip("each set is fitted by itself")
    rng, y = np.random.default_rng(1), example.data[law.explains]
    by = 0.3 * example.noise * rng.standard_normal((3, len(y)))
    sets = y * np.exp(by) if law.relative else y + by
    fitted = law.fit(example.data, example.fixed)
    many = law.many(fitted, example.data, example.fixed, sets, np.ones_like(sets))
    for own, found in zip(sets, many):
        alone = law.fit({**example.data, law.explains: own}, example.fixed)
        assert found is not None
        for number in example.numbers:
            assert found.numbers[number] == pytest.approx(alone.numbers[number], rel=5e-3), number


@pytest.mark.parametrize("name", NAMES)
def test_intervals_hold_the_truth(name: str):
    """A few draws only: a right 90% interval holds fewer than 3 of 6 truths once in eight hundred numbers."""
    known(name)
    for number, covered in coverage(law_named(name), draws=6, samples=40).items():
        assert covered.held >= 3, number


def test_too_narrow_intervals_are_seen():
    """The same law with curves that leave most of the noise out."""
    law, example = known("speed_up")
    sure = dataclasses.replace(law, example=lambda: dataclasses.replace(example, noise=0.0))
    rows = coverage(sure, draws=3, samples=20)
    assert rows["speed_up"].bias == pytest.approx(0, abs=1e-6)
    wrong = dataclasses.replace(example, numbers={"speed_up": 1.7})
    assert coverage(dataclasses.replace(law, example=lambda: wrong), draws=5, samples=40)["speed_up"].held == 0
    assert NEXT in rows


def test_the_binomial_interval_is_wilsons():
    """Scipy's is the reference."""
    binomial = pytest.importorskip("scipy.stats").binomtest(180, 200).proportion_ci(method="wilson")
    found = Covered(1.0, 180, 200, 0.0, 0.0).interval
    assert found == pytest.approx((binomial.low, binomial.high), rel=1e-6)
