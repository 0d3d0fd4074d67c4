"""The table at the end of a study: every row with its result, the best one first, and what ties with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_gpt.lab.queue import done_before
from lit_gpt.lab.repeats import SEEDS
from lit_gpt.lab.rows import Row, summary, word_of
from lit_gpt.lab.watch import diverged
from lit_gpt.scaling.noise import degrees, difference, pooled
from lit_gpt.utils.text import aligned

METRIC = "metric/val_loss@1x"
OF_THE_BUDGET = ("max_tokens", "decay_tokens", "schedule", "total_bsz", "base_hps.warmup_tokens")


def results(rows: Sequence[Row], output: Path, metric: str, columns: Sequence[str] | None = None) -> str:
    """Every row with its result, lowest first, as a table. columns: the options to show; None is all that rows have."""
    found = [(row, summary(output / row.name)) for row in rows]
    found.sort(key=lambda pair: (not pair[1].get("finished"), pair[1].get(metric) is None, pair[1].get(metric)))
    keys = list(dict.fromkeys(key for row in rows for key in row.options)) if columns is None else list(columns)
    table = [["name", *keys, metric, "state"]]
    for row, run in found:
        value = run.get(metric)
        shown = [word_of(row.options[key]) if key in row.options else "" for key in keys]
        table.append([row.name, *shown, "-" if value is None else f"{value:.4f}", state_of(output / row.name, run)])
    return aligned(table)


def state_of(folder: Path, run: Mapping[str, Any]) -> str:
    """Of a row, in words."""
    if state := done_before(folder):
        return ": ".join(filter(None, [state, diverged(folder)]))
    return f"at step {run['step']}" if run else "no result"


def varied(rows: Sequence[Row]) -> list[str]:
    """The options that are not the same in all rows, less those that follow from the budget."""
    keys = dict.fromkeys(key for row in rows for key in row.options if key not in OF_THE_BUDGET)
    return [key for key in keys if len({word_of(row.options.get(key)) for row in rows}) > 1]


def verdict(rows: Sequence[Row], output: Path, metric: str) -> str:
    """Which setting is best, over its seeds, and which are ties: less than two standard errors of the difference above.

    The standard deviation between seeds is pooled over all settings that have several. "" where there is one setting.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        run = summary(output / row.name)
        if run.get("finished") and run.get(metric) is not None and row.part != "trunk":
            key = tuple((k, word_of(v)) for k, v in row.options.items() if k not in SEEDS)
            groups[key][row.name] = run[metric]
    if len(groups) < 2:
        return ""
    best, *others = sorted(groups.values(), key=lambda group: fmean(group.values()))
    noise, lead = pooled([list(group.values()) for group in groups.values()]), next(iter(best))
    if not noise.free:
        return f"lowest: {lead}. There is one seed of each setting, so nobody knows which differences are noise."
    tied = [next(iter(group)) for group in others if difference([*best.values()], [*group.values()], noise).is_tie]
    return (
        f"lowest: {lead}, mean {fmean(best.values()):.4f} of {len(best)} seeds; standard deviation of a seed "
        f"{noise.deviation:.4f} ({degrees(noise.free)}). "
        + (
            f"Ties with it, below two standard errors: {', '.join(tied)}."
            if tied
            else "All others are more than two standard errors above."
        )
    )
