"""A study on Slurm through submitit: an array with one job per run, which queue again when their time is up.

submitit is optional (pip install submitit). Its local executor starts the same jobs on this machine: cluster=local.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.lab.scripts import LADDER

FOLDER = "slurm"  # of the study's folder, for submitit's own files


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
    try:
        with executor.batch():  # on Slurm, one array
            return [executor.submit(Job([words[0], "run", "--only", name, *words[1:]])) for name in names]
    except (RuntimeError, FileNotFoundError) as error:  # of sbatch: it refuses, or is not there
        said = " ".join(str(error).split())
        raise UserError(f"--slurm {given}: submitting failed ({said}). Correct the parameters.") from error


def _parameters(given: str) -> dict[str, Any]:
    """key=value,... with whole numbers as numbers. Raises UserError for a part without a value."""
    found: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--slurm {given}: {part!r} has no value. Type key=value,key=value.")
        found[key.strip()] = int(value) if value.strip().isdigit() else value.strip()
    return found
