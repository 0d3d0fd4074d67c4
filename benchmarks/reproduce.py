"""Every measurement that docs/ reports, as a queue of commands over the GPUs of one machine.

    python benchmarks/reproduce.py --text /usr/lib/python3 --output out/reproduce --gpus 0,1,2,3
    python benchmarks/reproduce.py --output out/reproduce --gpus 0 --only moe,experts --minutes 9
    python benchmarks/reproduce.py --list true

The commands are those of reproduce.csv beside this file; {out} stands for --output, {text} for --text, {gpus}
for the GPUs that the job was given. The runner is the ladder's (lit_gpt/lab/queue.py and local.py), with job.py in the
place of pretrain.py: two of these commands may work on one folder, a job that fails is tried again, and one whose
reproduce.py was killed goes on and is waited for. A job starts when what it needs is done and enough GPUs are free; the
first of the table goes first. "1-4" GPUs are as many of four as are free. Each writes <output>/jobs/<job>/log.txt, and
its results into <output>. Run the same command again after anything: jobs that ended well are skipped, sweeps go on
where they were. Results of jobs called NAME.part are joined in NAME.json. Exit code 1 when a job failed or was not
reached.
"""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lit_gpt.config.command import command_of, run_command
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.display import Display
from lit_gpt.lab.local import Worker, run_rows
from lit_gpt.lab.processes import CPU, Settings
from lit_gpt.lab.queue import Queue, Say, done_before
from lit_gpt.lab.rows import Row
from lit_gpt.lab.run_files import FINISHED
from lit_gpt.train.lease import Lease
from lit_gpt.utils.files import write_text

JOB = Path(__file__).with_name("job.py")
TABLE = Path(__file__).with_suffix(".csv")
FOLDER = "jobs"  # of --output, for the ladder's own files


class Job(NamedTuple):
    """A row of the table. gpus, most: what it cannot do without and what it can use. needs: the job that it waits
    for, or "". minutes: a job that takes longer is stopped.
    """

    name: str
    gpus: int
    most: int
    minutes: float
    needs: str
    command: str


def jobs() -> list[Job]:
    """The table, most important first."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = [(row, row["gpus"].split("-")) for row in csv.DictReader(file)]
    return [
        Job(row["name"], int(gpus[0]), int(gpus[-1]), float(row["minutes"]), row["needs"], row["command"])
        for row, gpus in rows
    ]


class Jobs(Queue):
    """The ladder's queue for jobs of different numbers of GPUs. given: job -> the GPUs that it has now."""

    def __init__(self, todo: Sequence[Job], output: Path, say: Say, gpus: Sequence[str], minutes: float) -> None:
        self.jobs, self.free, self.given = {job.name: job for job in todo}, list(gpus), dict[str, list[str]]()
        self.end = time.monotonic() + 60 * minutes
        super().__init__(rows_of(todo), output, say)

    def _may_start(self, row: Row) -> bool:
        """It may where GPUs are free, which are then its own."""
        job = self.jobs[row.name]
        if not super()._may_start(row) or len(self.free) < job.gpus:
            return False
        self.given[row.name], self.free = self.free[: job.most], self.free[job.most :]
        return True

    def _later(self, row: Row, owner: str, since: float) -> None:
        self._give_back(row)
        super()._later(row, owner, since)

    def settle(self, row: Row, state: str) -> None:
        """Note what became of a job, whose GPUs are free again."""
        self._give_back(row)
        super().settle(row, state)

    def _give_back(self, row: Row) -> None:
        with self._changed:
            self.free += self.given.pop(row.name, [])


class Hand(Worker):
    """Runs jobs, each on the GPUs that it was given and as long as it may."""

    queue: Jobs

    def _taken(self, row: Row, lease: Lease) -> None:
        self.place = tuple(self.queue.given[row.name]) or (CPU,)
        left = (self.queue.end - time.monotonic()) / 60
        self.settings = replace(self.settings, minutes=min(self.queue.jobs[row.name].minutes, left))
        super()._taken(row, lease)


def rows_of(todo: Sequence[Job]) -> list[Row]:
    """The jobs as rows of a study, which wait for what they need."""
    return [Row(job.name, {"command": job.command}, after=job.needs or None) for job in todo]


def run_jobs(
    todo: Sequence[Job], output: Path, gpus: Sequence[str], text: str, minutes: float, tries: int
) -> Mapping[str, str]:
    """Job -> FINISHED, or what became of it."""
    enough: dict[str, Job] = {}
    for job in todo:  # what a job needs comes before it
        if job.gpus <= len(gpus) and job.needs in ("", *enough):
            enough[job.name] = job
    places = ((CPU,),) * (len(gpus) + 1)  # one more for a job without a GPU
    given = ("--python", sys.executable, "--out", str(output), "--text", text)
    settings = Settings((sys.executable,), places, tries, overruling=given, watch=False, program=JOB)
    display = Display(rows_of([*enough.values()]))
    queue = Jobs([*enough.values()], output / FOLDER, display.say, gpus, minutes)
    timer = threading.Timer(60 * minutes, queue.stopping.set)
    timer.start()
    try:
        run_rows(queue, settings, display, Hand)
    finally:
        timer.cancel()
        display.close()
    return {job.name: queue.states.get(job.name, "not reached") for job in todo}


def join(out: Path) -> None:
    """NAME.part.json, lists of rows or objects that hold one, become NAME.json."""
    for name in sorted({path.name.split(".")[0] for path in out.glob("*.*.json")}):
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}.*.json"))]
        rows = [row for part in parts for row in (part if isinstance(part, list) else part["rows"])]
        facts = {} if isinstance(parts[0], list) else {k: v for k, v in parts[0].items() if k != "rows"}
        write_text(out / f"{name}.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def choose(only: str) -> list[Job]:
    """The jobs whose name or name's first part is in `only`, with what they need."""
    known = {job.name: job for job in jobs()}
    wanted = [word for word in only.split(",") if word]
    for word in wanted:
        if not any(word in (name, name.split(".")[0]) for name in known):
            raise UserError(f"There is no job {word!r}.{did_you_mean(word, known)} `--list true` shows them.")
    chosen = {n for n in known if not wanted or n in wanted or n.split(".")[0] in wanted}
    for name in reversed(known):  # needs come earlier in the table
        chosen |= {known[name].needs} - {""} if name in chosen else set()
    return [job for name, job in known.items() if name in chosen]


def main(
    output: Path = Path("out/reproduce"),
    gpus: str = "0",
    text: str | None = None,
    only: str = "",
    minutes: float = 1e6,
    tries: int = 2,
    list: bool = False,
) -> int:
    """Run the jobs and print a line for each as it starts and ends.

    Args:
        output: folder for logs and results.
        gpus: comma-separated GPUs to use.
        text: folder of Python sources, the corpus; needed until it is prepared.
        only: comma-separated jobs, or groups of them (the name up to the dot); default all.
        minutes: start nothing after it; what runs is stopped so that it can go on.
        tries: starts of a job that fails.
        list: print the commands and do nothing.
    """
    todo = choose(only)
    left = [job for job in todo if not done_before(output / FOLDER / job.name)]
    if any("{text}" in job.command for job in left) and text is None and not list:
        raise UserError("The corpus is not prepared. Give --text FOLDER, a folder of Python sources.")
    if list:
        for job in left:
            print(f"{job.name} ({job.gpus} GPUs, {job.minutes:g} minutes at most)\n  {job.command}")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    states = run_jobs(todo, output.resolve(), gpus.split(","), text or "", minutes, tries)
    join(output)
    unfinished = {name: state for name, state in states.items() if state != FINISHED}
    print(
        f"{len(states) - len(unfinished)} of {len(states)} jobs done"
        + "".join(f"\n  {n}: {s}" for n, s in unfinished.items())
    )
    return 1 if unfinished else 0


if __name__ == "__main__":
    run_command(command_of(main))
