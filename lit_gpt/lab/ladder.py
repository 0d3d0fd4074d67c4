"""A study from its file to its table: plan it, run it, and print what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lit_gpt.lab.display import Display
from lit_gpt.lab.leftovers import release_rows
from lit_gpt.lab.local import run_rows
from lit_gpt.lab.planning import Planned
from lit_gpt.lab.processes import Settings
from lit_gpt.lab.queue import GIVEN_UP, Queue, done_before
from lit_gpt.lab.refine import added_rates
from lit_gpt.lab.results import METRIC, results, varied, verdict
from lit_gpt.lab.rows import Row, check_folder, mark_folders, summary
from lit_gpt.lab.run_files import DIVERGED, FINISHED
from lit_gpt.lab.slurm import in_queue, submit
from lit_gpt.lab.study import Study
from lit_gpt.utils.files import told, write_text

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
        rows = self.chosen()
        tokens = {p.row.name: float(p.resolved.plan.tokens) for p in plans}
        display = Display(rows, tokens, {p.row.name: p.flops for p in plans})
        queue = Queue(rows, self.output, display.say, self.grown if self.study.refine else None)
        if plans:
            with told(self.output / STUDY):
                write_text(self.output / STUDY, yaml.safe_dump(self.study.resolved(), sort_keys=False))
        try:
            release_rows(rows, self.output, display.say)
            interrupted = run_rows(queue, settings, display)
        finally:
            display.close()
        print(f"\n{self.table([*rows, *self.added])}")
        if interrupted:
            print("interrupted; the same command goes on")
            return os.EX_TEMPFAIL
        return 1 if any(state in GIVEN_UP for state in queue.states.values()) else 0

    def submit(self, words: Sequence[str], given: str) -> int:
        """Submit what is not done, nor in its queue, to Slurm, and print the table so far; see lit_gpt/lab/slurm.py.

        Returns 0.
        """
        there = in_queue(self.output)
        left = [row for row in self.known() if not done_before(self.output / row.name)]
        for row in left:
            if row.name in there:
                print(f"{row.name}: job {there[row.name]} is in the queue")
        left = [row for row in left if row.name not in there]
        for row, job in zip(left, submit([row.name for row in left], words, self.output, given) if left else []):
            print(f"{row.name}: job {job.job_id}, output in {job.paths.stdout}")
        mark_folders(left, self.output)  # not before: where nothing was submitted, other options may be
        print(f"\n{self.table(self.known())}")
        return 0

    def chosen(self) -> list[Row]:
        """The rows to run: those of `only` in its order, and before them what they go on from."""
        wanted = set(self.only) or {row.name for row in self.study.rows}
        for row in reversed(self.study.rows):  # what others go on from comes before them
            wanted |= {row.after} if row.name in wanted and row.after else set()
        turn = {name: at for at, name in enumerate(self.only)}
        return sorted((row for row in self.study.rows if row.name in wanted), key=lambda row: turn.get(row.name, -1))

    def known(self) -> list[Row]:
        """The chosen rows, and those that the results on the disk ask for beside them.

        Raises UserError where a folder has results of other options, which are no results of this study.
        """
        for row in self.chosen():
            check_folder(row, self.output)
        while self.study.refine:
            rows = [*self.chosen(), *self.added]
            if not self.grown({row.name: state for row in rows if (state := done_before(self.output / row.name))}):
                break
        return [*self.chosen(), *self.added]

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
        new = [row for row in rows if row.name not in known]
        self.added += new
        return new

    def table(self, rows: Sequence[Row]) -> str:
        """The results, and which differences are more than noise."""
        columns = varied(rows) if self.study.variants else None
        rows = [row for row in rows if row.part != "trunk" or not done_before(self.output / row.name)]
        said = verdict(rows, self.output, self.metric) if self.study.variants else ""
        return "\n".join([results(rows, self.output, self.metric, columns), *([said] if said else [])])
