"""A study from its file to its table: plan it, run it, and print what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lit_gpt.lab.display import Display
from lit_gpt.lab.local import run_rows
from lit_gpt.lab.planning import Planned
from lit_gpt.lab.processes import Settings
from lit_gpt.lab.queue import DIVERGED, FINISHED, GIVEN_UP, Queue
from lit_gpt.lab.refine import added_rates
from lit_gpt.lab.results import METRIC, results, summary, varied, verdict
from lit_gpt.lab.rows import Row
from lit_gpt.lab.study import Study
from lit_gpt.utils.files import write_text

STUDY = "study.yaml"


@dataclass
class Ladder:
    """A study with its folder. metric: of summary.json, which is best. only: the rows to run, all if empty."""

    study: Study
    output: Path
    metric: str = METRIC
    only: Sequence[str] = ()
    added: list[Row] = field(default_factory=list)

    def run(self, settings: Settings, plans: Sequence[Planned] = ()) -> int:
        """Run what is not done, and print the table. Returns 0, 1 when a row failed, 75 when interrupted."""
        rows = [row for row in self.study.rows if not self.only or row.name in self.only]
        self.output.mkdir(parents=True, exist_ok=True)
        if plans:
            write_text(self.output / STUDY, yaml.safe_dump(self.study.resolved(), sort_keys=False))
        tokens = {p.row.name: float(p.resolved.plan.tokens) for p in plans}
        display = Display(rows, tokens, {p.row.name: p.flops for p in plans})
        queue = Queue(rows, self.output, display.say, self.grown if self.study.refine else None)
        try:
            interrupted = run_rows(queue, settings, display)
        finally:
            display.close()
        print(f"\n{self.table([*rows, *self.added])}")
        if interrupted:
            print("interrupted; the same command goes on")
            return os.EX_TEMPFAIL
        return 1 if any(state in GIVEN_UP for state in queue.states.values()) else 0

    def grown(self, states: Mapping[str, str]) -> list[Row]:
        """The rows that the losses so far ask for, by `refine` of the study."""
        assert self.study.refine is not None
        losses: dict[str, float | None] = {}
        for name, state in states.items():
            value = summary(self.output / name).get(self.metric) if state == FINISHED else None
            losses[name] = float("inf") if state == DIVERGED else value
        found = added_rates(self.study.rows, self.added, losses, self.study.refine)
        rows = [self.study.variants[row.name](self.study.refine.rate, rate) for row, rate in found]
        known = {row.name for row in (*self.study.rows, *self.added)}
        self.added += [row for row in rows if row.name not in known]
        return rows

    def table(self, rows: Sequence[Row]) -> str:
        """The results, and which differences are more than noise."""
        columns = varied(rows) if self.study.variants else None
        said = verdict(rows, self.output, self.metric) if self.study.variants else ""
        return "\n".join([results(rows, self.output, self.metric, columns), *([said] if said else [])])
