"""Every measurement that docs/ reports, as a queue of commands over the GPUs of one machine.

    python benchmarks/reproduce.py --text /usr/lib/python3 --output out/reproduce --gpus 0,1,2,3
    python benchmarks/reproduce.py --output out/reproduce --gpus 0 --only moe,experts --minutes 9
    python benchmarks/reproduce.py --list true

The commands are those of reproduce.csv beside this file; {out} stands for --output, {text} for --text, {gpus}
for the GPUs that the job was given. A job starts when what it needs is done and enough GPUs are free; the first
of the table goes first. "1-4" GPUs are as many of four as are free. Each writes <output>/<job>.log and its results
beside it. Run the same command again after anything: jobs that ended well are skipped, sweeps go on where
they were. Results of jobs called NAME.part are joined in NAME.json. Exit code 1 when a job failed or was not
reached.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config.command import command_of, run_command
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".csv")


class Job(NamedTuple):
    """A row of the table. gpus, most: what it cannot do without and what it can use. needs: jobs that it waits
    for. minutes: a job that takes longer is stopped.
    """

    name: str
    gpus: int
    most: int
    minutes: float
    needs: list[str]
    command: str


def jobs() -> list[Job]:
    """The table, most important first."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = [(row, row["gpus"].split("-")) for row in csv.DictReader(file)]
    return [
        Job(row["name"], int(gpus[0]), int(gpus[-1]), float(row["minutes"]), row["needs"].split(), row["command"])
        for row, gpus in rows
    ]


class Queue:
    """Runs jobs over GPUs; see the module."""

    def __init__(self, todo: list[Job], out: Path, gpus: Sequence[str], text: str | None, seconds: float) -> None:
        self.waiting, self.out, self.text = list(todo), out, text
        self.names, self.free = {job.name for job in todo}, list(gpus)
        self.end = time.monotonic() + seconds
        self.states: dict[str, str] = {}
        self.changed = threading.Condition()

    def run(self) -> dict[str, str]:
        """Job -> 'done', or what happened to it."""
        threads: list[threading.Thread] = []
        with self.changed:
            while self.waiting and time.monotonic() < self.end:
                job = next((job for job in self.waiting if self._can_start(job)), None)
                if job is None:
                    if not any(state == "runs" for state in self.states.values()):
                        break  # nothing will become free or done
                    self.changed.wait(1.0)
                    continue
                self.waiting.remove(job)
                gpus, self.free = self.free[: job.most], self.free[job.most :]
                self.states[job.name] = "runs"
                threads.append(threading.Thread(target=self._work, args=(job, gpus)))
                threads[-1].start()
        for thread in threads:
            thread.join()
        return self.states | {job.name: "not reached" for job in self.waiting}

    def _can_start(self, job: Job) -> bool:
        open_needs = [name for name in job.needs if name in self.names and self.states.get(name) != "done"]
        return len(self.free) >= job.gpus and not open_needs

    def _work(self, job: Job, gpus: list[str]) -> None:
        start = time.monotonic()
        limit = min(60 * job.minutes, self.end - start)
        command = job.command.replace("{python}", sys.executable).replace("{out}", str(self.out))
        command = command.replace("{text}", str(self.text)).replace("{gpus}", ",".join(gpus))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with (self.out / f"{job.name}.log").open("a") as log:
            log.write(f"$ {command}\n")
            log.flush()
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = process.wait(limit)
                state = "done" if code == 0 else f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                state = stop(process)
        if state == "done":
            (self.out / f"{job.name}.done").touch()
        print(f"{job.name:<22} {time.monotonic() - start:>6.0f} s  {state}", flush=True)
        with self.changed:
            self.free += gpus
            self.states[job.name] = state
            self.changed.notify()


def stop(process: subprocess.Popen[bytes]) -> str:
    """End a job and its children: first so that it can save, then at once."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, way)
        try:
            process.wait(15)
            break
        except subprocess.TimeoutExpired:
            continue
    return "stopped, out of time"


def join(out: Path) -> None:
    """NAME.part.json, lists of rows or objects that hold one, become NAME.json."""
    for name in sorted({path.name.split(".")[0] for path in out.glob("*.*.json")}):
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}.*.json"))]
        rows = [row for part in parts for row in (part if isinstance(part, list) else part["rows"])]
        facts = {} if isinstance(parts[0], list) else {k: v for k, v in parts[0].items() if k != "rows"}
        write_text(out / f"{name}.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def choose(only: str, done: set[str]) -> list[Job]:
    """The jobs whose name or name's first part is in `only`, with what they need; less those that are done."""
    known = {job.name: job for job in jobs()}
    wanted = [word for word in only.split(",") if word]
    for word in wanted:
        if not any(word in (name, name.split(".")[0]) for name in known):
            raise UserError(f"There is no job {word!r}.{did_you_mean(word, known)} `--list true` shows them.")
    chosen = {n for n in known if not wanted or n in wanted or n.split(".")[0] in wanted}
    for name in reversed(known):  # needs come earlier in the table
        chosen |= set(known[name].needs) if name in chosen else set()
    return [job for name, job in known.items() if name in chosen and name not in done]


def main(
    output: Path = Path("out/reproduce"),
    gpus: str = "0",
    text: str | None = None,
    only: str = "",
    minutes: float = 1e6,
    list: bool = False,
) -> int:
    """Run the jobs and print a line for each as it ends.

    Args:
        output: folder for logs and results.
        gpus: comma-separated GPUs to use.
        text: folder of Python sources, the corpus; needed until it is prepared.
        only: comma-separated jobs, or groups of them (the name up to the dot); default all.
        minutes: stop then; what runs is stopped so that it can go on.
        list: print the commands and do nothing.
    """
    done = {path.stem for path in output.glob("*.done")}
    todo = choose(only, done)
    if any("{text}" in job.command for job in todo) and text is None and not list:
        raise UserError("The corpus is not prepared. Give --text FOLDER, a folder of Python sources.")
    if list:
        for job in todo:
            print(f"{job.name} ({job.gpus} GPUs, {job.minutes:g} minutes at most)\n  {job.command}")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    states: dict[str, Any] = Queue(todo, output.resolve(), gpus.split(","), text, 60 * minutes).run()
    join(output)
    unfinished = {name: state for name, state in states.items() if state != "done"}
    print(
        f"{len(states) - len(unfinished)} of {len(states)} jobs done"
        + "".join(f"\n  {n}: {s}" for n, s in unfinished.items())
    )
    return 1 if unfinished else 0


if __name__ == "__main__":
    run_command(command_of(main))
