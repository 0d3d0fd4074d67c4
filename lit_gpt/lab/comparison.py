"""Whether two sides differ by more than runs that should be the same do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.other_data import different, other_settings
from lit_gpt.lab.repeats import SEEDS, groups_of, varied
from lit_gpt.lab.runs import FINISHED, Run, column
from lit_gpt.metrics.summary import METRICS_FILE, read_metrics
from lit_gpt.scaling.noise import Difference, Noise, degrees, difference, paired, pooled

TRAIN = "metric/train_loss"
JUDGED_BY = {"loss": "validation", "bpb": "validation", "train_loss": "train"}  # figure -> the data that it is of


@dataclass(frozen=True)
class Comparison:
    """How much more a figure is on side b.

    noise: of single runs, from both sides and the controls. means: the difference of means, judged by it. pairs: the
    same from runs that share both seeds, two pairs at least, else None. parted: the first step at which the training
    losses of the first two runs differ, 0 where they never do, None where they cannot be compared. apart: runs whose
    figure is of different data. judged: settings in which their evaluations differ. one_seed: whether repeated runs
    share their seeds, so that the noise is that of the machine.
    """

    figure: str
    a: list[float]
    b: list[float]
    noise: Noise
    means: Difference
    pairs: Difference | None
    parted: int | None
    apart: Sequence[str] = ()
    judged: Sequence[str] = ()
    one_seed: bool = False

    def in_words(self) -> str:
        """What was found, in sentences."""
        lines = [
            f"{self.figure}: {_mean(self.a)} -> {_mean(self.b)}",
            f"difference: {self.means.in_words()}",
        ]
        if self.apart:
            lines.append(
                f"warning: {self.figure} is of different data, such as of {' and '.join(self.apart[:2])}, so that this "
                "says little of the models; across tokenizers, only bits per byte (--metric bpb) of one text compare"
            )
        if self.judged:
            lines.append(
                f"warning: {self.figure} was measured with other {', '.join(self.judged)}: evaluate them alike"
            )
        if self.noise.free:
            lines.append(f"noise of a single run: {self.noise.deviation:.4g}, {degrees(self.noise.free)}")
            if self.one_seed:
                lines.append("warning: the repeated runs share their seeds, so this is not the noise of seeds")
        else:
            lines.append("Give repeated runs as --control, or several seeds of each side, to know the noise.")
        if self.pairs:
            shared = len(self.a) == len(self.b) == round(self.pairs.free) + 1
            decides = ", in which what a seed does to both sides cancels, so they decide" if shared else ""
            lines.append(f"pairs of one seed{decides}: {self.pairs.in_words()}")
        if self.parted is not None:
            same = "the training losses of the first two runs are the same to the last digit"
            lines.append(f"the training losses of the first two runs differ from step {self.parted} on"
                         if self.parted else same)  # fmt: skip
        return "\n".join(lines)


def compare(a: Sequence[Run], b: Sequence[Run], controls: Sequence[Run], figure: str = "loss") -> Comparison:
    """controls: runs whose differences are noise, in groups that differ in their seeds alone.

    Raises UserError for a side of several configurations, for copies of a run among its repetitions, and for runs that
    did not finish or lack the figure.
    """
    for side in (a, b):
        if len(groups_of(side)) > 1:
            differ = ", ".join(varied(side)[:4]) or "their data"
            raise UserError(
                f"{side[0].name} and {side[-1].name} are one side and differ in {differ}. Give runs that differ in "
                "their seeds alone, or choose with --where."
            )
    for run in (*a, *b, *controls):
        if run.state != FINISHED:
            raise UserError(f"The run {run.name} is not finished ({run.state}). Finish it, or leave it out.")
    first, second = column(a, figure).tolist(), column(b, figure).tolist()
    repeats = [group for group in _repeats(a, b, controls) if len(group) > 1]
    _check_copies(repeats)
    noise = pooled([column(group, figure).tolist() for group in repeats])
    apart = different([*a, *b], JUDGED_BY[figure]) if figure in JUDGED_BY else []
    means = difference(first, second, noise)
    judged, parted = other_settings([*a, *b], figure), _parted(a[0], b[0])
    pairs, one_seed = _pairs(a, b, figure), any(map(_share_seeds, repeats))
    return Comparison(figure, first, second, noise, means, pairs, parted, apart, judged, one_seed)


def _repeats(a: Sequence[Run], b: Sequence[Run], controls: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ by noise alone: controls of a side's configuration belong to it.

    Where both sides have one configuration, and differ in code or machine, controls are groups of their own.
    """
    given = {run.folder.resolve() for run in (*a, *b) if run.folder}
    others = [run for run in controls if not run.folder or run.folder.resolve() not in given]
    alike = len(groups_of([*a, *b])) == 1
    return [list(a), list(b), *groups_of(others)] if alike else groups_of([*a, *b, *others])


def _check_copies(repeats: Sequence[Sequence[Run]]) -> None:
    """Raise UserError for runs of equal numbers, also of speed and time: a copied folder says nothing of the noise.

    Lines of a table need not have a time or a seed, and so may be equal by chance, as shares of few answers are.
    """
    for group in repeats:
        first: dict[Any, Run] = {}
        for run in (run for run in group if run.folder):
            other = first.setdefault(tuple(sorted(run.numbers.items())), run)
            if other is not run:
                raise UserError(
                    f"{run.name} equals {other.name} in every number, as a copy does, and says nothing of the noise. "
                    "Give one of them."
                )


def _share_seeds(group: Sequence[Run]) -> bool:
    seeds = [tuple(run.value(seed) for seed in SEEDS) for run in group]
    known = [one for one in seeds if None not in one]
    return len(set(known)) < len(known)


def _pairs(a: Sequence[Run], b: Sequence[Run], figure: str) -> Difference | None:
    sides = [{tuple(run.value(seed) for seed in SEEDS): float(run.value(figure)) for run in side} for side in (a, b)]
    shared = [seeds for seeds in sides[0] if seeds in sides[1] and None not in seeds]
    return paired({seeds: sides[0][seeds] for seeds in shared}, sides[1]) if len(shared) > 1 else None


def _parted(a: Run, b: Run) -> int | None:
    if any(run.folder is None or not (run.folder / METRICS_FILE).is_file() for run in (a, b)):
        return None
    first, second = (_losses(run) for run in (a, b))
    steps = sorted(first.keys() & second.keys())
    return next((step for step in steps if first[step] != second[step]), 0) if steps else None


def _losses(run: Run) -> dict[int, float]:
    assert run.folder is not None
    curves = read_metrics(run.folder)
    losses = curves.get(TRAIN, np.full(len(curves["step"]), np.nan))
    return {int(step): loss for step, loss in zip(curves["step"], losses.tolist()) if np.isfinite(loss)}


def _mean(values: Sequence[float]) -> str:
    runs = f" (mean of {len(values)} runs)" if len(values) > 1 else ""
    return f"{np.mean(values):.5f}{runs}"
