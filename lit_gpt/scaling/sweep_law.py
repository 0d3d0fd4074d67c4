"""Optima of sweeps in the form of a law: what the laws of best rates, best batches and timescales share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lit_gpt.scaling.law import Data, Fitted
from lit_gpt.scaling.sweeps import Optima


def fitted(found: Optima, setting: str) -> Fitted:
    """The law; the symbol of its setting is `setting`, which `place` gives for an x that need not have a sweep.

    The best setting is a number of its own where there is one x only.
    """

    def curve(data: Data) -> np.ndarray:
        return found.loss(data["x"], data[setting])

    def place(at: float) -> Data:
        return {"x": np.array([at]), setting: found.best(np.array([at]))}

    numbers = {"a": found.a, "b": found.b, **({"c": found.c} if found.c else {})}
    if len(found.optima) == 1:
        numbers = {"best": found.optima[0].best}
    return Fitted(numbers, curve, 3 * len(found.optima), found.notes, place)


def shown(found: Optima, setting: str, x: str = "x") -> Fitted:
    """The same with a table of the optima."""
    return replace(fitted(found, setting), tables=found.table(setting, x))
