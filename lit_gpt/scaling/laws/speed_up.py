"""The effective speed-up of a variant: how much less compute it needs than a baseline for the same loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.scaling.fit import fit_power_law
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.speed import Ladders, SpeedUp, judged, ladders

LADDER = 4  # sizes for a law of its own: one more than a power law with offset has numbers


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """One power law with offset for both ladders, by Huber(0.01) of ln(loss)."""
    both = _ladders(data, fixed)
    point = both.problem.fit(data["loss"])
    found = _fitted(both.problem.read(point), both, judged(both, point, data["loss"]))
    return replace(found, tables=_by_own_laws(data, fixed.get("offset")))


def _by_own_laws(data: Data, offset: float | None) -> dict[str, list[list[str]]]:
    """What two separate power laws say at the compute of each run of the variant; none where one has too few runs."""
    ladders_of = [data["variant"] == number for number in (1, 2)]
    if any(len(np.unique(data["x"][here])) < LADDER for here in ladders_of):
        return {}
    base, other = (fit_power_law(data["x"][here], data["loss"][here], offset=offset) for here in ladders_of)
    rows = [["compute", "loss of the variant", "compute of the baseline for it", "ratio"]]
    for compute in np.unique(data["x"][ladders_of[1]]):
        loss = float(other(compute))
        needed = base.inverse(loss)
        rows.append([f"{compute:.4g}", f"{loss:.4f}", f"{needed:.4g}", f"{needed / compute:.3f}"])
    return {"By a power law of its own for each ladder, without intervals": rows}


def _ladders(data: Data, fixed: Mapping[str, float]) -> Ladders:
    return ladders(data["x"], data["variant"], data["loss"], fixed.get("alpha"), fixed.get("offset"))


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    both = _ladders(data, fixed)
    near = both.problem.fit(data["loss"])
    return [_fitted(law, both) for law in both.problem.refit(near, losses, counts)]


def _fitted(law: SpeedUp, both: Ladders, notes: tuple[str, ...] = ()) -> Fitted:
    def curve(data: Data) -> np.ndarray:
        return law(data["x"], data["variant"])

    def place(compute: float) -> Data:
        return {"x": np.array([compute]), "variant": np.array([2.0])}

    return Fitted(_numbers(law), curve, int(both.problem.free.sum()), notes, place)


def _numbers(found: SpeedUp) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("speed_up", "alpha", "offset", "factor")}


def _example() -> Example:
    law, compute = SpeedUp(1.4, 0.15, 1.7, 1e3), np.tile(np.geomspace(1e18, 1e21, 6), 2)
    variant = np.repeat([1.0, 2.0], 6)
    return Example(_numbers(law), {"x": compute, "variant": variant, "loss": law(compute, variant)}, 0.001)


LAW = Law(
    sentence="The effective speed-up of one ladder over another at equal loss.",
    formula="L = offset + factor (speed_up^(variant - 1) x)^-alpha, variant 1 for the baseline, 2 for the other",
    reads={"x": "flops", "variant": "variant", "loss": "loss"},
    parameters={
        "speed_up": "compute of the baseline over that of the variant, for the same loss",
        "alpha": "exponent that both share",
        "offset": "loss that both approach",
        "factor": "of the baseline",
    },
    fit=fit,
    relative=True,
    fixable=("alpha", "offset"),
    labels=("variant",),
    many=_many,
    example=_example,
)
