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


def ladder_of(output: Path) -> Ladder:
    return Ladder(Study((Row("a", {"seed": 1}), Row("b", {"seed": 2}))), output)


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in of squeue prints: a job and its name in each line."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which submit changes
    (tmp_path / "bin").mkdir()
    (tmp_path / "queue").touch()
    (tmp_path / "bin/squeue").write_text(
        f'#!/bin/sh\ncase "$*" in *--user={os.getuid()}*) exec cat {tmp_path}/queue;; esac\nexit 1\n'
    )
    (tmp_path / "bin/squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "queue"


class Taking(Refused):
    """submitit's executor where Slurm takes every job: 7_0, 7_1 and so on. killed: behind Slurm's yes."""

    names, killed = list[str](), False

    def submit(self, job: slurm.Job) -> SimpleNamespace:  # type: ignore[override]
        self.names.append(job.words[3])
        return SimpleNamespace(job_id=f"7_{len(self.names) - 1}", paths=SimpleNamespace(stdout="7.out"))

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        if self.killed:
            raise KeyboardInterrupt


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> type[Taking]:
    monkeypatch.setattr(Taking, "names", [])
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Taking))
    return Taking


def test_rows_that_slurm_has_are_not_submitted_again(
    squeue: Path, taking: type[Taking], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were, each time that the command was typed."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody_else")  # squeue takes the number, and a container may have no name for it
    assert ladder_of(tmp_path / "out").submit(["study.yaml"], "") == 0
    squeue.write_text("7_1 out\n8 other\n")
    assert ladder_of(tmp_path / "out").submit(["study.yaml"], "") == 0
    assert taking.names == ["a", "b", "a"] and "b: job 7_1 is in the queue" in capsys.readouterr().out
    squeue.write_text("7_2 out\n7_1 out\n")
    assert ladder_of(tmp_path / "out").submit(["study.yaml"], "") == 0
    assert taking.names == ["a", "b", "a"]


def test_a_kill_behind_slurms_yes(squeue: Path, taking: type[Taking], tmp_path: Path, monkeypatch) -> None:
    """Nothing was known of these jobs, so the next call submitted the rows once more."""
    monkeypatch.setattr(taking, "killed", True)
    with pytest.raises(KeyboardInterrupt):
        ladder_of(tmp_path / "out").submit(["study.yaml"], "")
    monkeypatch.setattr(taking, "killed", False)
    squeue.write_text("7_0 out\n7_1 out\n")
    with pytest.raises(UserError, match="ended while it submitted a, b, and Slurm has 7_0, 7_1 of the name out"):
        ladder_of(tmp_path / "out").submit(["study.yaml"], "")
    assert taking.names == ["a", "b"]
    squeue.write_text("8 other\n")
    assert ladder_of(tmp_path / "out").submit(["study.yaml"], "") == 0 and taking.names == ["a", "b"] * 2


def test_a_slurm_that_does_not_answer(squeue: Path, taking: type[Taking], tmp_path: Path) -> None:
    assert ladder_of(tmp_path / "out").submit(["study.yaml"], "") == 0
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(UserError, match=r"squeue does not say .*\(no controller\)"):
        ladder_of(tmp_path / "out").submit(["study.yaml"], "")


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
