"""submitit's local executor runs rows as its Slurm one would, and queues them again when their time is up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.lab import slurm
from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.rows import Row
from lit_gpt.lab.study import Study


def test_without_submitit_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(NotInstalled, match="pip install submitit"):
        slurm.submit(["a"], ["study.yaml"], tmp_path, "")


def test_jobs_of_the_local_executor_get_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ladder.py starts in each, and does not find this study."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which submit changes
    study = str(tmp_path / "no_study.yaml")
    jobs = slurm.submit(["a", "b"], [study, "--tries", "2"], tmp_path / "out", "cluster=local,timeout_min=5")
    assert [job.result() for job in jobs] == [2, 2]
    assert "no_study.yaml" in jobs[0].stderr()
    with pytest.raises(UserError, match="does not take this"):
        slurm.submit(["a"], [study], tmp_path / "out", "cluster=local,no_such_thing=1")


@pytest.mark.parametrize("given, said", [("timeout_min=5", "srun"), ("cluster=nowhere", "named nowhere")])
def test_where_there_is_no_slurm(given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows started on this machine at once, and an unknown cluster was a trace."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which submit changes
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"--slurm {given}: .*{said}.* cluster=local"):
        slurm.submit(["a"], ["study.yaml"], tmp_path / "out", given)


def test_slurm_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of submitit, which knows what it was given."""
    asked: list[str] = []

    def executor(folder: Path, cluster: str) -> None:
        asked.append(cluster)
        raise RuntimeError("Could not detect srun")

    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=executor))
    for given in ("timeout_min=5", "cluster=local"):
        with pytest.raises(UserError, match="detect srun"):
            slurm.submit(["a"], ["study.yaml"], tmp_path / "out", given)
    assert asked == ["slurm", "local"]


class Refused:
    """submitit's executor where sbatch says no: submitit raises at the end of the batch, a kind of RuntimeError."""

    error: Exception = RuntimeError("sbatch: error: invalid partition\nspecified: nope")

    def __init__(self, folder: Path, cluster: str) -> None: ...

    def update_parameters(self, **_: object) -> None: ...

    def submit(self, _: slurm.Job) -> None: ...

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        raise self.error


def test_where_nothing_was_submitted_no_row_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sbatch refuses was a traceback, and rows seemed to be run, which no other options could have then."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Refused))
    ladder = Ladder(Study((Row("a", {"seed": 1}), Row("b", {"seed": 2}))), tmp_path)
    with pytest.raises(UserError, match=r"nope: submitting failed \(sbatch: error: invalid partition specified"):
        ladder.submit(["study.yaml"], "slurm_partition=nope")
    monkeypatch.setattr(Refused, "error", FileNotFoundError(2, "No such file or directory", "sbatch"))
    with pytest.raises(UserError, match=r"submitting failed .*'sbatch'"):
        ladder.submit(["study.yaml"], "")
    assert not list(tmp_path.iterdir())
    job = SimpleNamespace(job_id="7", paths=SimpleNamespace(stdout="7.out"))
    monkeypatch.setattr(Refused, "batch", lambda _: nullcontext())
    monkeypatch.setattr(Refused, "submit", lambda *_: job)
    assert ladder.submit(["study.yaml"], "slurm_partition=gpu") == 0
    with pytest.raises(UserError, match=r"other options \(seed: 1 -> 3\)"):
        Ladder(Study((Row("a", {"seed": 3}),)), tmp_path).submit(["study.yaml"], "")


def test_a_job_whose_time_is_up_lets_its_run_save_and_queues_again() -> None:
    pytest.importorskip("submitit")
    job = slurm.Job(["study.yaml", "run", "--only", "a"])
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print(1, flush=True); "
    code += "time.sleep(60)"
    job.child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert job.child.stdout is not None and job.child.stdout.readline()
    again = job.checkpoint()
    assert job.child.returncode == 75
    assert again.function.words == job.words and again.function.child is None
