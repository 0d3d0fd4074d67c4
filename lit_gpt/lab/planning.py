"""What a study will cost, before anything starts: the Plan of every run, FLOPs, GPU hours, memory and disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.lab.facts import planned
from lit_gpt.lab.queue import done_before
from lit_gpt.lab.rows import Row, few, of_each, word_of
from lit_gpt.lab.speeds import Speed, speed_of
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.utils.text import aligned

GIB = 2.0**30


@dataclass(frozen=True)
class Planned:
    """A row with its Plan. tokens: that it trains itself, without those before a fork. memory: bytes on one GPU.
    disk: bytes of the checkpoints that it keeps. ranks: the GPUs that it runs on.
    """

    row: Row
    resolved: ResolvedRun
    tokens: int
    flops: float
    memory: int
    disk: int
    ranks: int = 1


def plan_rows(rows: Sequence[Row], ranks: int = 1) -> list[Planned]:
    """The Plan of every row on `ranks` processes. Raises one UserError with what is wrong with each row.

    It is also wrong to keep no checkpoint of a row that others go on from.
    """
    plans = of_each(rows, lambda row: _planned(row, ranks), lambda row: row.name)
    forked = {row.after for row in rows}
    if gone := [p.row.name for p in plans if p.row.name in forked and not p.resolved.run.keep_last]:
        raise UserError(
            f"{few(gone)}: other runs go on from it, and --keep_last 0 leaves them no checkpoint. Give --keep_last 1."
        )
    return plans


def _planned(row: Row, ranks: int) -> Planned:
    options = {**row.options, "max_tokens": row.tokens} if row.after else row.options
    resolved = planned(options, ranks)
    plan, run = resolved.plan, resolved.run
    tokens = plan.tokens - row.start
    memory = plan.memory
    state = sum(memory.get(part, 0) for part in ("weights", "averages", "optimizer")) * ranks
    kept = run.keep_last + int(run.keep_best) + (plan.steps // run.keep_every if run.keep_every else 0)
    return Planned(
        row, resolved, tokens, tokens * plan.model_flops_per_token, sum(memory.values()), state * kept, ranks
    )


def plan_text(study_rows: Sequence[Planned], output: Path, speeds: Sequence[Speed], columns: Sequence[str]) -> str:
    """A line for every run, and what they need together. columns: options to show, those that differ between rows.

    Parameters are active ones without embeddings, as everywhere in the lab.
    """
    lines = [["run", *columns, "parameters", "tokens", "steps", "batch", "rate", "FLOPs", "GPU hours", "GiB", ""]]
    hours = {p.row.name: hours_of(p, speeds) for p in study_rows}
    for p in study_rows:
        plan = p.resolved.plan
        shown = [word_of(p.row.options[key]) if key in p.row.options else "" for key in columns]
        active = plan.counts["non_embedding"] - plan.counts["total"] + plan.counts["active"]
        steps = plan.steps - p.row.start // plan.batch_tokens  # that it trains itself, as its tokens
        numbers = [f"{active:,}", f"{p.tokens:,}", f"{steps:,}", f"{plan.batch_tokens:,}"]
        rate = next((plan.roles[role].lr for role in ("matrix", "expert", "vector") if plan.counts.get(role)), 0.0)
        time = hours[p.row.name]
        lines.append(
            [p.row.name, *shown, *numbers, f"{rate:.3g}", f"{p.flops:.3g}", "?" if time is None else f"{time:.3g}"]
            + [f"{p.memory / GIB:.3g}", done_before(output / p.row.name)]
        )
    return "\n".join([aligned(lines), "", *_totals(study_rows, output, hours, speeds), *_notes(study_rows)])


def _totals(
    rows: Sequence[Planned], output: Path, hours: dict[str, float | None], speeds: Sequence[Speed]
) -> list[str]:
    left = [p for p in rows if not done_before(output / p.row.name)]
    known = [time for p in left if (time := hours[p.row.name]) is not None]
    missing = (
        f"; of {len(left) - len(known)} runs unknown: give --speed FLOPS_PER_SECOND" if len(known) < len(left) else ""
    )
    sources = "; ".join(dict.fromkeys(speed.source for p in left if (speed := _speed(p, speeds))))
    time = f"{sum(known):.3g} GPU hours are left, with starts" + (f" ({sources})" if sources else "") + missing
    return [
        f"runs       {len(rows)}, of which {len(rows) - len(left)} are done",
        f"compute    {sum(p.flops for p in rows):.4g} FLOPs, of which {sum(p.flops for p in left):.4g} are left",
        f"time       {time}",
        f"memory     {max(p.memory for p in rows) / GIB:.3g} GiB on a GPU at most (run {_largest(rows)})",
        f"disk       {sum(p.disk for p in rows) / GIB:.3g} GiB of checkpoints at the end, and those being written",
    ]


def _largest(rows: Sequence[Planned]) -> str:
    return max(rows, key=lambda p: p.memory).row.name


def _notes(rows: Sequence[Planned]) -> list[str]:
    """What resolving the runs had to say, each sentence once."""
    said: dict[str, list[str]] = defaultdict(list)
    for p in rows:
        missing = p.resolved.data.missing
        guess = [f"the vocabulary, on which FLOPs and memory depend, is the family's. {missing}"] if missing else []
        for note in [*p.resolved.notes, *guess]:
            said[note].append(p.row.name)
    return [f"note       {few(names)}: {note}" for note, names in said.items()]


def hours_of(p: Planned, speeds: Sequence[Speed]) -> float | None:
    """GPU hours of a run by itself, by the nearest measured speed and start; None where none is known."""
    speed = _speed(p, speeds)
    return speed and speed.seconds(p.tokens, p.resolved.plan.model_flops_per_token, p.ranks) / 3600


def _speed(p: Planned, speeds: Sequence[Speed]) -> Speed | None:
    plan = p.resolved.plan
    return speed_of(speeds, plan.family, plan.model_flops_per_token)
