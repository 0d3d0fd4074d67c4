"""What every fit asks of its data: numbers that can be fitted, one point that stands apart, and a fit by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling.noise import incomplete_beta

SIGNIFICANCE = 0.01  # of the outlier test, over all points together
CHANCE = 0.05  # the usual level of a test: noise alone looks like a law as often as this, and nothing is said
FAR = 6.0  # robust standard deviations (1.4826 median |residual|) from which a run is far from the law
SHOWN = 5  # runs in a sentence
NOTHING = 1e-5  # share of the loss below which a term, or how much it falls, explains nothing
ROUNDING = 1e-9  # residuals below this share of y are no noise but rounding


def positive(need: int, **columns: np.ndarray) -> list[np.ndarray]:
    """The columns as float64, of one length, finite and positive, with `need` different values in each.

    Raises UserError, with the column's name.
    """
    try:
        found = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    except (TypeError, ValueError) as error:  # words, or columns of columns
        raise UserError(f"A fit needs one number of each kind per run ({error}).") from error
    lengths = {name: column.shape for name, column in found.items()}
    if len(set(lengths.values())) > 1 or any(column.ndim != 1 for column in found.values()):
        raise UserError(f"A fit needs one number of each kind per run, got {lengths}.")
    for name, column in found.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            got = ", ".join(f"{column[i]:g}" for i in bad[:SHOWN]) + ", ..." * (len(bad) > SHOWN)
            raise UserError(
                f"A fit needs finite positive numbers, got {name} = {got} in {len(bad)} of {len(column)} runs. Correct "
                "or leave out what has them."
            )
    for name, column in list(found.items())[:-1]:  # the last one is what is explained
        if len(there := np.unique(column)) < need:
            got = ", ".join(f"{value:.4g}" for value in there)
            raise UserError(f"This fit needs {need} different {name}, got {got}. Add runs of others.")
    return list(found.values())


def check_offset(offset: float | None, values: np.ndarray, what: str) -> None:
    """Raise UserError where an offset that is known is not below all values. what: a value in words, such as "y"."""
    if offset is not None and offset >= (least := float(values.min())):
        said = f"The offset {offset:g} is not below every {what}, the lowest of which is {least:.4g}. Give less."
        raise UserError(said)


def outliers(places: Mapping[str, np.ndarray], error: float, without: np.ndarray, parameters: int) -> tuple[str, ...]:
    """A sentence on the point that stands apart most, if one does.

    places: symbol -> (n,), what a point is called by. error: squared error of the fit to all n points, in units of y.
    without: (n,), of the fits that leave out each. Leaving one out is giving it a parameter of its own, so this is the
    test of that parameter (Cook and Weisberg 1982, section 2.2.2), which must be beyond chance among n points.
    """
    freedom = len(without) - 1 - parameters
    if freedom < 1:
        return ()
    i = int(np.argmin(without))
    least = max(float(without[i]), freedom * ROUNDING**2)
    if len(without) * by_chance(least, error, 1, freedom) > SIGNIFICANCE:
        return ()
    t = math.sqrt(max(error - float(without[i]), 0.0) * freedom / least)
    named = _named(places, i)
    return (f"one run is an outlier: {named} ({t:.3g} standard deviations). Check it, or leave it out",)


def _named(places: Mapping[str, np.ndarray], i: int) -> str:
    return ", ".join(f"{name} = {column[i]:.4g}" for name, column in places.items())


def far_off(residual: np.ndarray, parameters: int, places: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """A sentence on the runs that Huber's fit does not heed, if any.

    residual: (n,), of logarithms. parameters: how many numbers were fitted. places: symbol -> (n,), see outliers.
    """
    residual = np.abs(residual)
    beyond = np.sort(residual)[parameters:]  # the fit goes through as many runs as it has numbers, or nearly
    typical = float(np.median(beyond)) if len(beyond) else math.inf
    far = np.flatnonzero(residual > max(FAR * 1.4826 * typical, 1e-6))
    if not len(far):
        return ()
    shown = "; ".join(_named(places, i) for i in far[:SHOWN]) + "; ..." * (len(far) > SHOWN)
    return (f"{len(far)} of {len(residual)} runs are far from the law: {shown}. Check them",)


def untested(error: float, y: np.ndarray, parameters: int) -> tuple[str, ...]:
    """A sentence where the fit says no more than y's mean, or cannot: noise without any law is often fitted as well.

    error: squared error of the fit of y, with so many parameters. y: in units of the data, so that 1 is large.
    """
    freedom = len(y) - parameters
    if freedom < 1:
        return (f"{len(y)} runs are no test of {parameters} numbers, which fit any of them exactly: add runs",)
    mean_alone = float(((y - y.mean()) ** 2).sum())
    if mean_alone <= len(y) * ROUNDING**2:
        return ()
    chance = by_chance(error, mean_alone, parameters - 1, freedom)
    found = f"noise without a law is fitted as well in {chance:.0%} of all cases: add runs, or runs further apart"
    return (found,) if chance > CHANCE else ()


def by_chance(error: float, without: float, parameters: int, freedom: int) -> float:
    """How often noise alone lowers a least-squares error from `without` to `error` by so many more parameters.

    The F test of nested models, by the incomplete beta function I(error / without; freedom / 2, parameters / 2).
    freedom: points beyond all parameters.
    """
    return incomplete_beta(freedom / 2, parameters / 2, error / without) if without else 1.0


def chi_square_beyond(value: float, freedom: int) -> float:
    """How often a chi-square of so many degrees of freedom is larger: Abramowitz and Stegun, 26.4.4 and 26.4.5."""
    half, odd = value / 2, freedom % 2
    if not half:
        return 1.0
    logs = ((i + odd / 2) * math.log(half) - half - math.lgamma(i + 1 + odd / 2) for i in range(freedom // 2))
    return (math.erfc(math.sqrt(half)) if odd else 0.0) + sum(map(math.exp, logs))  # e^-half alone may be below 1e-308
