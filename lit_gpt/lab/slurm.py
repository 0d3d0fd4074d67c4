"""A study on Slurm through submitit: an array with one job per run, which queue again when their time is up.

submitit is optional (pip install submitit). Its local executor starts the same jobs on this machine: cluster=local.

The study's folder says which job has which row, and, before Slurm is asked, that it is asked: whenever a process is
killed, the next one finds out from Slurm what it may submit, and submits no row twice.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.lab.rows import few
from lit_gpt.lab.scripts import LADDER
from lit_gpt.utils.files import read_object_if_any, told, write_text

FOLDER = "slurm"  # of the study's folder, for submitit's own files
SUBMITTED = "submitted.json"  # of the study's folder: row -> its newest job, "" while Slurm is asked to take it


@dataclass
class Job:
    """One run as submitit calls it. words: of the command line of ladder.py."""

    words: list[str]
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """The exit code of ladder.py."""
        self.child = subprocess.Popen([sys.executable, str(LADDER), *self.words])
        return self.child.wait()

    def checkpoint(self) -> Any:
        """Called shortly before the time is up, or when another job takes the place: save, and queue again."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait()
        return DelayedSubmission(Job(self.words))


def submit(names: Sequence[str], words: Sequence[str], output: Path, given: str) -> list[Any]:
    """Submit a job per row; submitit's jobs. words: STUDY and what follows `run --only NAME` for ladder.py.

    given: parameters of submitit's executors, such as timeout_min=240,slurm_partition=gpu,gpus_per_node=1.
    Raises NotInstalled without submitit, and UserError for parameters that it does not know or Slurm does not take.
    """
    try:
        import submitit
    except ImportError as missing:
        raise NotInstalled("--slurm needs submitit. Type: pip install submitit") from missing
    parameters = _parameters(given)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(LADDER.parents[1]), os.environ.get("PYTHONPATH")]))
    try:
        # Without a name submitit takes this machine where there is no Slurm, and starts all rows at once.
        executor = submitit.AutoExecutor(folder=output / FOLDER, cluster=parameters.pop("cluster", "slurm"))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--slurm {given}: {error}. Submit where srun is, or type cluster=local to start all jobs on this machine."
        ) from error
    try:
        executor.update_parameters(name=output.name, **parameters)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--slurm {given}: submitit does not take this ({error}).") from error
    before = read_object_if_any(output / SUBMITTED)
    _note(output, before | dict.fromkeys(names, ""))
    try:
        with executor.batch():  # on Slurm, one array
            jobs = [executor.submit(Job([words[0], "run", "--only", name, *words[1:]])) for name in names]
    except (RuntimeError, FileNotFoundError) as error:  # of sbatch: it refuses, or is not there
        _note(output, before)
        said = " ".join(str(error).split())
        raise UserError(f"--slurm {given}: submitting failed ({said}). Correct the parameters.") from error
    _note(output, before | {name: str(job.job_id) for name, job in zip(names, jobs)})
    return jobs


def in_queue(output: Path) -> dict[str, str]:
    """Row -> its job, of those that Slurm has, waiting or running; nothing where there is no Slurm.

    Raises UserError where a process was ended while it submitted, and Slurm has jobs that may be of these rows, and
    where Slurm does not answer.
    """
    known = read_object_if_any(output / SUBMITTED)
    if not known or shutil.which("squeue") is None:
        return {}
    words = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %j"]
    asked = subprocess.run(words, capture_output=True, text=True)
    if asked.returncode:
        raise UserError(
            f"squeue does not say which jobs are there ({' '.join(asked.stderr.split())}), so rows could be submitted "
            "twice. Type the same command again when Slurm answers."
        )
    names = dict(line.split(" ", 1) for line in asked.stdout.splitlines())
    unsure = [row for row, job in known.items() if not job]
    others = [job for job, name in names.items() if name == output.name and job not in known.values()]
    if unsure and others:
        raise UserError(
            f"The last `run --slurm` ended while it submitted {few(unsure)}, and Slurm has {few(others)} of the name "
            f"{output.name}. Wait until these jobs are over, or end them with scancel, and type the same command again."
        )
    return {row: job for row, job in known.items() if job in names}


def _note(output: Path, jobs: Mapping[str, str]) -> None:
    path = output / SUBMITTED
    with told(path):
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(jobs) + "\n") if jobs else path.unlink(missing_ok=True)


def _parameters(given: str) -> dict[str, Any]:
    """key=value,... with whole numbers as numbers. Raises UserError for a part without a value."""
    found: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--slurm {given}: {part!r} has no value. Type key=value,key=value.")
        found[key.strip()] = int(value) if value.strip().isdigit() else value.strip()
    return found
