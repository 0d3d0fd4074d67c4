"""From runs to what a law is fitted to: which runs, which columns, and what was left out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.fit_doubts import units, unlike_in_sweeps
from lit_gpt.lab.fit_steps import Sample, logged_steps
from lit_gpt.lab.other_data import different, other_settings
from lit_gpt.lab.repeats import groups_of
from lit_gpt.lab.rows import NOTE
from lit_gpt.lab.runs import FINISHED, Run, column, known_name, read_runs
from lit_gpt.lab.where import matching
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.scaling.law import RUN, Law

VALIDATION, TRAINING, TOKENS = "metric/val_loss@1x", "metric/train_loss", "total_tokens"
KINDS = ("train_model", "mixer_options", "optimizer", "parameterization")  # settings of which a law is another one
SIZES = ("parameters", "tokens", "batch", "rate", "weight_decay")  # columns that decide the loss
POINTS = 60  # of a training curve, which is averaged in between: single steps are noisy
TRUNK = "trunk"  # part of a run in a row.json whose learning rate did not decay
BUDGETS = ("flops", "flops_6nd", "tokens")
SAME = 0.02  # relative difference below which runs have one budget: they end at whole batches
FEW = 8  # points of a curve, below which it says little


def finished_runs(
    paths: Iterable[Path], where: str | None, needed: Sequence[str], repeated: bool, unfinished: bool = False
) -> tuple[list[Run], tuple[str, ...]]:
    """The runs of these folders and files that a fit may use, and what was left out; see `usable`.

    Raises UserError where nothing is left.
    """
    runs = read_runs(paths)
    kept = matching(runs, where) if where else runs
    if not kept:
        raise UserError(f"--where {where!r} is true of none of {len(runs)} runs. Change it.")
    return usable(kept, needed, repeated, unfinished)


def usable(
    runs: Sequence[Run], needed: Sequence[str], repeated: bool = False, unfinished: bool = False
) -> tuple[list[Run], tuple[str, ...]]:
    """The runs that a fit may use, and what was left out.

    needed: columns without which a run is left out. repeated: also runs that saw some data more than once. unfinished:
    also runs that have not ended, and trunks, as their curves are enough. Raises UserError where nothing is left.
    """
    kept, notes = list(runs), list[str]()
    for why, fits in (
        ("did not finish", lambda run: unfinished or run.state == FINISHED),
        ("are trunks, whose weights have not decayed", lambda run: unfinished or run.value("part") != TRUNK),
        (
            "saw data more than once (--repeated true takes them)",
            lambda run: repeated or run.numbers.get("epochs", 0) <= 1,
        ),
    ):
        notes += _left_out([run for run in kept if not fits(run)], why)
        kept = [run for run in kept if fits(run)] or _none_left(len(kept), why)
    for name in needed:
        without = [run for run in kept if not isinstance(run.value(name), int | float)]
        if without and len(without) < len(kept):  # column says what to do where none has it
            notes += _left_out(without, f"{'has' if len(without) == 1 else 'have'} no {name}")
            kept = [run for run in kept if run not in without]
    return kept, tuple(notes)


def lowest_per(runs: Sequence[Run], by: str, explained: str) -> tuple[list[Run], tuple[str, ...]]:
    """Of each value of a column or setting, the runs of the configuration with the lowest mean, and which those are.

    Others, such as those of worse rates, are on no curve of lowest losses. by: where it is a budget, values closer than
    SAME are one, as runs end at whole batches. Raises UserError for a column that a run has not.
    """
    groups = _budgets(runs, known_name(by)) if known_name(by) in BUDGETS else grouped(runs, by).values()
    lowest = [min(groups_of(group), key=lambda same: column(same, explained).mean()) for group in groups]
    kept = [run for group in lowest for run in group]
    names = ", ".join(run.name for run in kept)
    return kept, (f"of each {by}, the configuration of the lowest mean {explained} is used: {names}",)


def _budgets(runs: Sequence[Run], name: str) -> list[list[Run]]:
    """The runs by a budget, the smallest first."""
    amounts, found = column(runs, name), list[list[Run]]()
    start = 0.0
    for i in np.argsort(amounts, kind="stable"):
        if not found or amounts[i] > start * (1 + SAME):
            start = amounts[i]
            found.append([])
        found[-1].append(runs[i])
    return found


def _none_left(count: int, why: str) -> list[Run]:
    raise UserError(f"{f'All {count} runs {why}' if count else 'There are no runs'}, so there is nothing to fit.")


def _left_out(runs: Sequence[Run], why: str) -> list[str]:
    if not runs:
        return []
    shown = ", ".join(run.name for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    return [f"left out: {len(runs)} {'run' if len(runs) == 1 else 'runs'} that {why}: {shown}"]


def grouped(runs: Sequence[Run], by: str | None) -> dict[str, list[Run]]:
    """The runs by the value of a column or setting, in the order of the values; all of them under "" without one.

    Raises UserError for a run that has no value.
    """
    if by is None:
        return {"": list(runs)}
    values = {run.name: run.value(known_name(by)) for run in runs}
    if missing := [name for name, value in values.items() if value is None]:
        settings = sorted({key for run in runs for key in (*run.settings, *run.numbers)})
        raise UserError(f"The run {missing[0]} has no {by!r} to group by.{did_you_mean(by, settings)}")
    found: dict[str, list[Run]] = {}
    even = all(isinstance(value, int | float) for value in values.values())
    for run in sorted(runs, key=lambda run: values[run.name] if even else str(values[run.name])):
        found.setdefault(str(values[run.name]), []).append(run)
    return found


def columns_of(law: Law, x: Iterable[str], y: str | None) -> dict[str, str]:
    """Symbol -> column, from --x and --y. x: a column, or SYMBOL=COLUMN for laws of several.

    Raises UserError for symbols that the law has not.
    """
    reads = dict(law.reads)
    for word in x:
        symbol, equals, name = word.partition("=")
        if not equals:
            symbol, name = _symbol(law, word), word
        if symbol not in law.given:
            raise UserError(f"This law has no {symbol!r}; it reads {', '.join(law.given)} and explains {law.explains}.")
        reads[symbol] = known_name(name)
    if y is not None:
        reads[law.explains] = known_name(y)
    return reads


def fixed_of(words: Sequence[str]) -> dict[str, float]:
    """--fix as numbers. Raises UserError for what is none."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            found[name] = float(text)
            if not math.isfinite(found[name]):
                raise ValueError(text)
        except ValueError as error:
            raise UserError(f"--fix {word!r} is no number of the law. Write NAME=NUMBER, such as c=0.") from error
    return found


def _symbol(law: Law, name: str) -> str:
    """The symbol that a column is for: the only one, or the one that has such a column by default."""
    alike = [s for s in law.given if law.reads[s].split("_")[0] == known_name(name).split("_")[0]]
    if len(law.given) > 1 and len(alike) != 1:
        raise UserError(f"This law reads {', '.join(law.given)}; say which one {name!r} is, as in --x SYMBOL={name}.")
    return law.given[0] if len(law.given) == 1 else alike[0]


def needed_by(law: Law, reads: Mapping[str, str]) -> list[str]:
    """The columns without which a run says nothing to a law."""
    return [name for symbol, name in reads.items() if symbol not in law.labels and not law.every_step]


def sample(law: Law, runs: Sequence[Run], reads: Mapping[str, str]) -> Sample:
    """The columns that a law reads of these runs. Raises UserError for columns that they do not have."""
    if law.every_step:
        return logged_steps(runs, reads)
    if law.curves:
        return _curves(law, runs, reads)
    data = {symbol: column(runs, name) for symbol, name in reads.items() if symbol not in law.labels}
    notes = list[str]()
    for symbol in set(reads) & set(law.labels):
        data[symbol], said = _numbered(runs, reads[symbol])
        notes.append(f"{symbol} {said}")
    data = {symbol: data[symbol] for symbol in reads}
    seeds = {run.value("seed") for run in runs} - {None}
    if len(seeds) == 1 and len(runs) > 1:
        notes.append("all runs have one seed, so nothing here measures noise: add seeds, or give its size with --noise")
    if kinds := [name for name in KINDS if len({str(run.value(name)) for run in runs} - {"None"}) > 1]:
        notes.append(f"the runs differ in {' and '.join(kinds)}: --group {kinds[0]} fits them apart")
    notes += [*_other_data(runs), *_other_settings(runs, reads.values()), *_copies(runs, data), *units(runs, reads)]
    notes += unlike_in_sweeps(law, runs, data, reads)
    mixed = _mixed(runs, [data[symbol] for symbol in law.given], set(reads.values()))
    if mixed:
        notes.append(f"runs that are one place for this law differ in {', '.join(mixed)}: choose some with --where")
    return Sample(runs, data, [run.name for run in runs], reads, tuple(notes), mixed)


def _mixed(runs: Sequence[Run], given: Sequence[np.ndarray], read: Collection[str]) -> tuple[str, ...]:
    """The columns that the law does not read and that differ between runs at one place."""
    places: dict[tuple[str, ...], list[Run]] = {}
    for run, place in zip(runs, zip(*given)):
        places.setdefault(tuple(f"{value:.5e}" for value in place), []).append(run)
    return tuple(
        name
        for name in SIZES
        if name not in read and any(len({_digits(run, name) for run in here}) > 1 for here in places.values())
    )


def _other_data(runs: Sequence[Run]) -> Iterator[str]:
    """That runs saw other data, or were judged by it: their losses are then no points of one law."""
    for part, words in (("train", "trained"), ("validation", "validated")):
        if names := different(runs, part):
            few = " and ".join(names[:2])
            yield f"the runs were {words} on different data, such as {few}: compare them, or choose some with --where"


def _other_settings(runs: Sequence[Run], columns: Iterable[str]) -> Iterator[str]:
    for name in columns:
        if keys := other_settings(runs, name):
            yield f"{name} was measured with other {', '.join(keys)} in some runs: evaluate them alike"


def _copies(runs: Sequence[Run], data: Mapping[str, np.ndarray]) -> list[str]:
    """That runs have equal numbers, as copies of one run have: they make intervals narrow, and tell nothing new."""
    first: dict[tuple[float, ...], str] = {}
    names = [run.name for run, row in zip(runs, zip(*data.values())) if first.setdefault(row, run.name) != run.name]
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    said = f"{len(names)} of {len(runs)} runs equal another one in every number ({shown})"
    return [f"{said}: if they are copies of a run, leave them out"]


def _digits(run: Run, name: str) -> str:
    return f"{run.numbers[name]:.2e}" if name in run.numbers else ""


def _numbered(runs: Sequence[Run], name: str) -> tuple[np.ndarray, str]:
    """A column of words as numbers from 1, in the order of the runs; where no run has it, the study that it is of."""
    values = [run.value(name) for run in runs]
    if all(value is None for value in values):
        values = [run.folder and str(run.folder.parents[(run.folder.parent / NOTE).is_file()]) for run in runs]
    if None in values:
        raise UserError(f"{runs[values.index(None)].name} has no {name!r}. Say which column tells the runs apart.")
    kinds = list(dict.fromkeys(values))
    words = ", ".join(f"{number} is {kind}" for number, kind in enumerate(kinds, 1))
    return np.array([kinds.index(value) + 1.0 for value in values]), words


def _curves(law: Law, runs: Sequence[Run], reads: Mapping[str, str]) -> Sample:
    """Every logged point of the runs: tokens so far, and compute in proportion to them."""
    loss_key = _loss_key(runs, reads[law.explains])
    curves = {run.name: _points(run, loss_key) for run in runs}
    short = [run for run in runs if len(curves[run.name][0]) < FEW]
    runs = [run for run in runs if run not in short] or _none_left(len(runs), f"logged fewer than {FEW} {loss_key}")
    parts: dict[str, list[np.ndarray]] = {symbol: [] for symbol in (*reads, RUN)}
    names: list[str] = []
    for number, run in enumerate(runs):
        tokens, loss = curves[run.name]
        share = tokens / float(column([run], "tokens")[0])
        for symbol, name in reads.items():
            whole = symbol == law.explains or name == "tokens"
            end = 1.0 if whole else float(column([run], name)[0])
            grows = name == "steps" or name.startswith("flops")
            value = loss if symbol == law.explains else tokens if name == "tokens" else end * share**grows
            parts[symbol].append(np.broadcast_to(value, tokens.shape))
        parts[RUN].append(np.full(len(tokens), float(number)))
        names += [run.name] * len(tokens)
    reads = {**reads, law.explains: loss_key}
    notes = tuple(_left_out(short, f"logged fewer than {FEW} {loss_key}"))
    return Sample(runs, {symbol: np.concatenate(values) for symbol, values in parts.items()}, names, reads, notes)


def _loss_key(runs: Sequence[Run], y: str) -> str:
    """The metric whose curves are read: the validation loss where it was measured often, else the training loss."""
    if y != "loss":
        return y
    often = all(len(_raw(run, VALIDATION)[0]) >= FEW for run in runs)
    return VALIDATION if often else TRAINING


def _raw(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    if run.folder is None:
        raise UserError(
            f"{run.name} has no training curve; this law needs run folders. Fit --law chinchilla to its end."
        )
    found = read_metrics(run.folder)
    if key not in found or TOKENS not in found:
        return np.array([]), np.array([])
    there = np.isfinite(found[key]) & (found[TOKENS] > 0)
    return found[TOKENS][there], found[key][there]


def _points(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, loss) of a run, at most POINTS, of equal steps in ln(tokens) then."""
    tokens, loss = _raw(run, key)
    if len(tokens) <= POINTS:
        return tokens, loss
    edges = np.linspace(math.log(tokens[0]), math.log(tokens[-1]), POINTS + 1)
    bins = np.clip(np.digitize(np.log(tokens), edges) - 1, 0, POINTS - 1)
    counts = np.bincount(bins, minlength=POINTS)
    there = counts > 0
    means = (np.bincount(bins, weights=values, minlength=POINTS)[there] / counts[there] for values in (tokens, loss))
    return next(means), next(means)


def held_out(law: Law, found: Sample, which: str) -> np.ndarray:
    """Which runs are not fitted: those of the most compute (or most of the first column), or of a name or pattern.

    Returns (runs,) booleans. Raises UserError for a name that none has, and where no run would be left.
    """
    if law.curves:
        raise UserError("--hold_out works on the ends of runs, and this law reads whole curves. Leave it out.")
    if which == "largest":
        flops = np.array([run.numbers.get("flops", run.numbers.get("flops_6nd", math.nan)) for run in found.runs])
        size = flops if np.isfinite(flops).all() else found.data[law.given[0]]
        out = size > size.max() * (1 - 1e-3)
    else:
        out = np.array([fnmatch.fnmatchcase(name, which) for name in found.names])
    if not out.any():
        raise UserError(f"No run is called {which!r}.{did_you_mean(which, found.names)} Give a name, or largest.")
    if out.all():
        raise UserError(f"--hold_out {which} holds out all {len(out)} runs. Give fewer.")
    return out


def part(found: Sample, rows: np.ndarray) -> Sample:
    """Some of the runs of a sample, (runs,) booleans."""
    kept: list[int] = np.flatnonzero(rows).tolist()
    return Sample(
        [found.runs[i] for i in kept],
        {symbol: values[kept] for symbol, values in found.data.items()},
        [found.names[i] for i in kept],
        found.reads,
        found.notes,
    )
