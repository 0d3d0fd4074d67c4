"""Power laws and Chinchilla's three approaches; test_law_examples.py has what all laws share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.lab.fit_report import judge
from lit_gpt.lab.fit_steps import Sample
from lit_gpt.scaling.fit import PowerLaw, fit_power_law, power_laws
from lit_gpt.scaling.intervals import draw, noise_of, without_each
from lit_gpt.scaling.law import RUN, Data, Fitted, Law
from lit_gpt.scaling.laws import LAWS, law_named
from lit_gpt.scaling.laws.chinchilla import BESIROGLU, fit_chinchilla

EXPONENT = BESIROGLU.beta / (BESIROGLU.alpha + BESIROGLU.beta)
DEPTHS = np.array([8.0, 12.0, 16.0, 20.0, 24.0])
# microsoft/ArchScale@c2ec1d6, plots/plot_flops_scaling.py: losses of these depths at 100B tokens times N / N(16).
ARCHSCALE = {
    "mup": (0.64, [2.5972, 2.2647, 2.0682, 1.9263, 1.8252]),
    "mup++": (0.60, [2.5621, 2.2440, 2.0505, 1.9164, 1.8172]),
    "sambay": (0.58, [2.5051, 2.2073, 2.0227, 1.8963, 1.7999]),
}


def isoflops(budgets: int = 4, sizes: int = 5, reach: float = 2.0) -> Data:
    """Noise-free runs of some budgets around the best size of each."""
    flops = np.repeat(np.geomspace(1e18, 1e20, budgets), sizes)
    best = np.array([BESIROGLU.optimum(c)[0] for c in flops])
    n = best * np.tile(np.geomspace(1 / reach, reach, sizes), budgets)
    return {"C": flops, "N": n, "D": flops / 6 / n, "L": BESIROGLU(n, flops / 6 / n)}


def curves(sizes: int = 12, points: int = 40, noise: float = 0.0) -> Data:
    """Training curves from 2 to 200 tokens per parameter."""
    n = np.repeat(np.geomspace(3e7, 3e9, sizes), points)
    d = n * np.tile(np.geomspace(2, 200, points), sizes)
    loss = BESIROGLU(n, d) + np.random.default_rng(0).normal(0, noise, len(n))
    return {"C": 6 * n * d, "N": n, "D": d, "L": loss, RUN: np.repeat(np.arange(sizes), points).astype(float)}


@pytest.mark.parametrize("name", ARCHSCALE)
def test_irreducible_losses_that_archscale_prints(name: str) -> None:
    """C goes with N^2, and N with depth^3. Least squares in its scipy script stops a little early for mup++."""
    printed, losses = ARCHSCALE[name]
    flops = 6 * (14.5 * 128**2 * DEPTHS**3) ** 2 * 100e9 / (14.5 * 128**2 * 16**3)
    found = fit_power_law(flops, np.array(losses))
    assert found.c == pytest.approx(printed, abs=0.05)
    pinned = fit_power_law(flops, np.array(losses), offset=printed)
    assert ((found(flops) - losses) ** 2).sum() <= ((pinned(flops) - losses) ** 2).sum()


def test_a_power_law_with_a_known_offset() -> None:
    x = np.geomspace(1e18, 1e22, 5)
    law = law_named("power")
    found = law.fit({"x": x, "y": PowerLaw(1e3, 0.15, 1.7)(x)}, {"c": 1.7})
    assert found.numbers == pytest.approx({"a": 1e3, "b": 0.15, "c": 1.7}) and found.free == 2
    with pytest.raises(UserError, match="not below every y"):
        law.fit({"x": x, "y": PowerLaw(1e3, 0.15, 1.7)(x)}, {"c": 3.0})
    with pytest.raises(UserError, match=r"'d' of this law cannot be given.*can be given: c"):
        law.check_fixed({"d": 1.0})


@pytest.mark.parametrize("offset", [None, 1.0])
def test_many_power_laws_are_those_of_each(offset: float | None) -> None:
    """Also for sets with repeated points, and without some."""
    rng, x = np.random.default_rng(0), np.geomspace(1e18, 1e22, 7)
    y = PowerLaw(1e3, 0.15, 1.7)(x) + rng.normal(0, 0.01, (20, 7))
    counts = rng.multinomial(7, np.full(7, 1 / 7), 20).astype(float)
    for own, count, found in zip(y, counts, power_laws(x, y, counts, offset=offset)):
        rows = np.repeat(np.arange(7), count.astype(int))
        alone = fit_power_law(x[rows], own[rows], offset=offset)
        np.testing.assert_allclose([found.b, found.c], [alone.b, alone.c], rtol=1e-5, atol=1e-6)
    few = power_laws(x, y[:1], np.array([[7.0, 0, 0, 0, 0, 0, 0]]), offset=offset)
    assert math.isnan(few[0].b)


def test_chinchilla_with_a_known_loss() -> None:
    data = isoflops()
    found = fit_chinchilla(data["N"], data["D"], data["L"], fixed={"E": 1.5})
    assert pytest.approx(1.5) == found.E
    free = fit_chinchilla(data["N"], data["D"], data["L"])
    assert pytest.approx(BESIROGLU.E, rel=1e-3) == free.E
    assert found.alpha < free.alpha  # a lower E leaves more to fall
    for wrong in ({"E": 0.0}, {"E": 9.0}, {"alpha": -0.3}):
        with pytest.raises(UserError, match="is no law of these runs"):
            fit_chinchilla(data["N"], data["D"], data["L"], fixed=wrong)


def test_isoflop_finds_the_allocation() -> None:
    """Close to the optimum a parabola is the law; the loss there is a power of C plus E (Hoffmann, equation 4)."""
    found = law_named("isoflop").fit(isoflops(reach=1.3), {})
    assert found.numbers["N_exponent"] == pytest.approx(EXPONENT, abs=2e-3)
    assert found.numbers["D_exponent"] == pytest.approx(1 - EXPONENT, abs=2e-3)
    assert found.numbers["c"] == pytest.approx(BESIROGLU.E, rel=0.01)
    assert found.place is not None
    place = found.place(1e21)
    n, d = BESIROGLU.optimum(1e21)
    assert (place["N"][0], place["D"][0]) == pytest.approx((n, d), rel=0.02)
    assert found.curve(place)[0] == pytest.approx(float(BESIROGLU(n, d)), rel=2e-3)


def test_isoflop_asks_for_a_bracketed_optimum() -> None:
    """Sizes on one side of a budget's best say nothing of it, and were the published bias of small studies."""
    data = isoflops(budgets=3)
    first = data["C"] == data["C"].min()
    n = np.where(first, data["N"] * 8, data["N"])
    moved = {"C": data["C"], "N": n, "D": data["C"] / 6 / n, "L": BESIROGLU(n, data["C"] / 6 / n)}
    found = law_named("isoflop").fit(moved, {})
    assert any("1e+18 is not bracketed (add smaller models)" in note for note in found.notes)
    assert any("two budgets" in note for note in found.notes)
    only = {name: column[~first | (np.arange(15) < 2)] for name, column in data.items()}
    assert any("fewer than three sizes" in note for note in law_named("isoflop").fit(only, {}).notes)
    one = {name: column[first] for name, column in data.items()}
    with pytest.raises(UserError, match="1 of 1 budgets have three sizes"):
        law_named("isoflop").fit(one, {})


def test_a_budget_whose_compute_drifts_with_the_size_keeps_its_parabola_and_is_said() -> None:
    """As FLOPs with the head do at one 6 N D. The runs at the ends were compared with the law over budgets, so that the
    noise was fifty times what it is, and nothing said that these are no runs of one budget.
    """
    data = isoflops(budgets=3, reach=3.0)
    law, noise = law_named("isoflop"), 0.003 * np.random.default_rng(0).standard_normal(15)
    drifts = {**data, "C": data["C"] * np.tile(1.12 ** np.arange(5), 3), "L": data["L"] + noise}
    found = law.fit(drifts, {})
    left = [
        budget - np.polyval(np.polyfit(np.log(n), budget, 2), np.log(n))
        for n, budget in zip(np.split(drifts["N"], 3), np.split(drifts["L"], 3))
    ]
    assert noise_of(law, found, drifts).size == pytest.approx(np.linalg.norm(left) / math.sqrt(15 - 9))
    assert sum("differ in compute by a factor of 1.57" in note for note in found.notes) == 3
    assert not any("differ in compute" in note for note in law.fit(data, {}).notes)


def test_envelope_finds_the_allocation() -> None:
    """Sizes are steps, so the envelope of twelve of them is near the truth only."""
    found = law_named("envelope").fit(curves(), {})
    assert found.numbers["N_exponent"] == pytest.approx(EXPONENT, abs=0.03)
    assert found.points is not None and found.points["N"].max() < 3e9, "the largest size has none above it"
    n, d = BESIROGLU.optimum(1e20)
    assert found.curve({"C": np.array([1e20])})[0] == pytest.approx(float(BESIROGLU(n, d)), rel=0.01)


def test_envelope_draws_whole_runs() -> None:
    law, data = law_named("envelope"), curves(noise=0.002)
    found = law.fit(data, {})
    drawn = draw(law, found, data, {}, noise_of(law, found, data), samples=50)
    low, high = drawn.intervals()["N_exponent"]
    assert low < found.numbers["N_exponent"] < high and high - low < 0.2
    assert "80% of 12 runs" in drawn.way
    assert len(without_each(law, found, data, {})) == 12


def test_envelope_refuses_an_offset_above_its_losses() -> None:
    with pytest.raises(UserError, match="The offset 9 is not below every least loss"):
        law_named("envelope").fit(curves(), {"c": 9.0})


def test_envelope_refuses_too_few_curves() -> None:
    data = curves(sizes=2)
    with pytest.raises(UserError, match="There are 2 training curves"):
        law_named("envelope").fit(data, {})


@pytest.mark.parametrize("name", ["chinchilla", "isoflop", "envelope"])
def test_units_change_nothing(name: str) -> None:
    """Tokens in billions and losses in bits leave the exponents and the shape of the optimum."""
    law = law_named(name)
    data = {**curves(noise=0.001)} if name == "envelope" else {**isoflops(), RUN: np.arange(20.0)}
    known = {symbol: data[symbol] for symbol in law.reads} | ({RUN: data[RUN]} if law.curves else {})
    other = {**known, "D": known["D"] / 1e9, law.explains: known[law.explains] / math.log(2)}
    one, two = law.fit(known, {}), law.fit(other, {})
    for exponent in ("N_exponent", "D_exponent"):
        assert one.numbers[exponent] == pytest.approx(two.numbers[exponent], rel=1e-4)


@pytest.mark.parametrize("name", ["power", "chinchilla", "isoflop"])
@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0, float("inf")])
def test_impossible_numbers_are_refused(name: str, bad: float) -> None:
    law, data = law_named(name), isoflops()
    given = {"x": data["C"], "y": data["L"]} if name == "power" else {symbol: data[symbol] for symbol in law.reads}
    given = {symbol: column.copy() for symbol, column in given.items()}
    given[law.explains][2] = bad
    with pytest.raises(UserError, match="finite positive numbers"):
        law.fit(given, {})


def test_names_of_laws() -> None:
    with pytest.raises(UserError, match=r"Unknown law 'isoflops'\. Did you mean 'isoflop'"):
        law_named("isoflops")
    assert all(LAWS.takes(LAWS.load(name)) for name in LAWS.names())


def test_laws_of_ones_own_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were tracebacks, of every command that lists the laws and of the figure."""
    monkeypatch.setitem(LAWS.plugins, "empty", object())
    with pytest.raises(UserError, match=r"laws/empty\.py has no LAW = Law"):
        law_named("empty")
    columns = {"x": np.geomspace(1, 9, 5), "y": np.arange(5.0)}
    sample = Sample([], columns, [], {"x": "flops", "y": "loss"})
    for found, says in (
        (None, "fit of the law empty returned NoneType; return a Fitted"),
        (Fitted({"a": 1.0}, lambda data: data["x"] * np.nan, 1), "says nothing of any of the 5 runs: its curve is NaN"),
    ):
        law = Law("", "", {"x": "flops", "y": "loss"}, {"a": ""}, lambda data, fixed, found=found: found)  # type: ignore[misc]
        with pytest.raises(UserError, match=says):
            judge("empty", law, sample, {}, None, 100, 0.9)
