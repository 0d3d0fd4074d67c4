"""From runs to what a law is fitted to: which runs, which columns, and what was left out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.runs import COLUMNS, FINISHED, Run, column, known_name, read_runs
from lit_gpt.lab.where import matching
from lit_gpt.metrics.labels import axis_label
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.scaling.law import RUN, Data, Law

VALIDATION, TRAINING, TOKENS = "metric/val_loss@1x", "metric/train_loss", "total_tokens"
POINTS = 60  # of a training curve, which is averaged in between: single steps are noisy
FEW = 8  # points of a curve, below which it says little


@dataclass(frozen=True)
class Sample:
    """What a law is fitted to. data: by symbol. names: the run of each point. reads: symbol -> column."""

    runs: Sequence[Run]
    data: Data
    names: Sequence[str]
    reads: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def words(self, symbol: str) -> str:
        """A column in words."""
        return words(self.reads[symbol])


def words(name: str) -> str:
    """A column in words and units."""
    return COLUMNS.get(name) or axis_label(name)


def finished_runs(
    paths: Iterable[Path], where: str | None, needed: Sequence[str], repeated: bool
) -> tuple[list[Run], tuple[str, ...]]:
    """The runs that a fit may use, and what was left out. repeated: also runs that saw some data more than once.

    needed: columns without which a run is left out. Raises UserError where nothing is left.
    """
    runs = read_runs(paths)
    kept = matching(runs, where) if where else runs
    if not kept:
        raise UserError(f"--where {where!r} is true of none of {len(runs)} runs. Change it.")
    notes = []
    for why, fits in (
        ("did not finish", lambda run: run.state == FINISHED),
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
            notes += _left_out(without, f"have no {name}")
            kept = [run for run in kept if run not in without]
    return kept, tuple(notes)


def _none_left(count: int, why: str) -> list[Run]:
    raise UserError(f"All {count} runs {why}, so there is nothing to fit.")


def _left_out(runs: Sequence[Run], why: str) -> list[str]:
    if not runs:
        return []
    shown = ", ".join(run.name for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    return [f"left out: {len(runs)} {'run' if len(runs) == 1 else 'runs'} that {why}: {shown}"]


def grouped(runs: Sequence[Run], by: str | None) -> dict[str, list[Run]]:
    """The runs by the value of a column or setting, in the order of the values; all of them under "" without one."""
    if by is None:
        return {"": list(runs)}
    values = {run.name: run.value(known_name(by)) for run in runs}
    if missing := [name for name, value in values.items() if value is None]:
        settings = sorted({key for run in runs for key in (*run.settings, *run.numbers)})
        raise UserError(f"The run {missing[0]} has no {by!r} to group by.{did_you_mean(by, settings)}")
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: str(values[run.name])):
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


def _symbol(law: Law, name: str) -> str:
    """The symbol that a column is for: the only one, or the one that has such a column by default."""
    alike = [s for s in law.given if law.reads[s].split("_")[0] == known_name(name).split("_")[0]]
    if len(law.given) > 1 and len(alike) != 1:
        raise UserError(f"This law reads {', '.join(law.given)}; say which one {name!r} is, as in --x SYMBOL={name}.")
    return law.given[0] if len(law.given) == 1 else alike[0]


def sample(law: Law, runs: Sequence[Run], reads: Mapping[str, str]) -> Sample:
    """The columns that a law reads of these runs. Raises UserError for columns that they do not have."""
    if law.curves:
        return _curves(law, runs, reads)
    data = {symbol: column(runs, name) for symbol, name in reads.items()}
    notes = []
    seeds = {run.value("seed") for run in runs} - {None}
    if len(seeds) == 1 and len(runs) > 1:
        notes.append("all runs have one seed, so nothing here measures noise: add seeds, or give its size with --noise")
    return Sample(runs, data, [run.name for run in runs], reads, tuple(notes))


def _curves(law: Law, runs: Sequence[Run], reads: Mapping[str, str]) -> Sample:
    """Every logged point of the runs: tokens so far, and compute in proportion to them."""
    loss_key = _loss_key(runs, reads[law.explains])
    parts: dict[str, list[np.ndarray]] = {symbol: [] for symbol in (*reads, RUN)}
    names: list[str] = []
    for number, run in enumerate(runs):
        tokens, loss = _points(run, loss_key)
        share = tokens / float(column([run], "tokens")[0])
        for symbol, name in reads.items():
            whole = symbol == law.explains or name == "tokens"
            end = 1.0 if whole else float(column([run], name)[0])
            grows = name.startswith("flops")
            value = loss if symbol == law.explains else tokens if name == "tokens" else end * share**grows
            parts[symbol].append(np.broadcast_to(value, tokens.shape))
        parts[RUN].append(np.full(len(tokens), float(number)))
        names += [run.name] * len(tokens)
    reads = {**reads, law.explains: loss_key}
    return Sample(runs, {symbol: np.concatenate(values) for symbol, values in parts.items()}, names, reads)


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
    """(tokens, loss) of a run, of equal steps in ln(tokens). Raises UserError for a run that logged too few."""
    tokens, loss = _raw(run, key)
    if len(tokens) < FEW:
        raise UserError(f"{run.name} has {len(tokens)} points of {key}, and a curve needs {FEW}. Log more often.")
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
