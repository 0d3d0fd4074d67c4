"""What a fit cannot see of its runs: columns in other units, and sweeps whose runs differ in size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lit_gpt.lab.runs import Run
from lit_gpt.scaling.law import Law
from lit_gpt.scaling.sweeps import groups

SIZES = {"flops", "flops_6nd", "tokens", "parameters"}  # columns that belong together
# Of two of them: the least and the largest possible ratio, and its words. Runs of a minute have 0.2 tokens per
# parameter, and the longest known ones 1e4; a large head on a small model has 100 times the FLOPs.
RATIOS = (
    ("tokens", "parameters", 0.05, 1e6, "tokens per parameter"),
    ("flops", "flops_6nd", 0.1, 1e4, "times 6 x parameters x tokens in FLOPs"),
)
SWEEPS = ("x", "rate"), ("x", "batch")  # what laws of sweeps read: the second column is swept at each x
ALIKE = ("parameters", "depth", "width", "context", "tokens")  # what decides the loss beside the setting of a sweep
UNLIKE = 0.1  # a larger relative difference is no rounding to whole batches


def units(runs: Sequence[Run], reads: Mapping[str, str]) -> Iterator[str]:
    """A sentence where sizes, tokens and compute of runs cannot belong together, as when one is counted in millions.

    reads: symbol -> the column that a law reads.
    """
    for over, under, low, high, words in RATIOS if SIZES & set(reads.values()) else ():
        known = [run for run in runs if run.numbers.get(over, 0) > 0 and run.numbers.get(under, 0) > 0]
        ratios = {run.name: run.numbers[over] / run.numbers[under] for run in known}
        odd = [f"{name} has {ratio:.3g}" for name, ratio in ratios.items() if not low <= ratio <= high]
        if odd:
            more = f" ({len(odd)} of {len(runs)} runs)" if len(odd) > 1 else ""
            yield f"{odd[0]} {words}{more}: is one of these columns counted in millions or billions? Count in ones"


def unlike_in_sweeps(
    law: Law, runs: Sequence[Run], data: Mapping[str, np.ndarray], reads: Mapping[str, str]
) -> Iterator[str]:
    """A sentence where the runs of one sweep differ in size or length, which moves the loss more than settings do."""
    if law.given not in SWEEPS:
        return
    sweeps = [[run for run, of_it in zip(runs, here) if of_it] for here in groups(data["x"])]
    unlike = [name for name in ALIKE if name not in reads.values() and any(_differ(own, name) for own in sweeps)]
    if unlike:
        yield f"runs of one sweep differ in {' and '.join(unlike)}: --group {unlike[0]} fits them apart"


def _differ(runs: Sequence[Run], name: str) -> bool:
    values = [run.numbers[name] for run in runs if run.numbers.get(name, 0) > 0]
    return bool(values) and max(values) > min(values) * (1 + UNLIKE)
