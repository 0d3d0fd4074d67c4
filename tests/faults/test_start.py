"""A start that is killed at any moment can be made again, with and without --resume auto."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import resealed
from killed_run import KILLED, OPTIONS, kill_at, resolved_of, run_killed
from spawn import ended, forked
from tiny_run import folder_of, run

from lit_gpt.data.documents import find_files
from lit_gpt.errors import UserError
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.train import run_folder
from lit_gpt.train.lease import take_lease
from lit_gpt.train.stopping import EXIT_INTERRUPTED


def begin(resolved: ResolvedRun) -> None:
    """What a run without checkpoints does to its folder before it trains."""
    lease = run_folder.lock_folder(resolved, None, None, run_folder.check_folder(resolved, None))
    run_folder.write_archive(resolved)
    lease.close()


def dies(resolved: ResolvedRun, operation: int) -> bool:
    """Whether a start in another process was killed at its n-th operation on a file; else it went well."""

    def start() -> int:
        kill_at(operation, resolved.folder)
        begin(resolved)
        return 0

    code = ended(forked(start))
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.parametrize("before", ["nothing", "half of another run"])
def test_every_moment_of_a_start(before, data, tmp_path, monkeypatch):
    """Between plan.json and numerics.json a killed start left a folder that had to be removed by hand."""
    monkeypatch.setattr("lit_gpt.train.lease.STALE_AFTER", 0.2)  # waited for where the owner did not yet say its name
    monkeypatch.setattr("lit_gpt.train.lease.RENEW_EVERY", 0.05)
    monkeypatch.setattr(
        run_folder, "provenance", lambda data: ({"git": {"patch": "patch-1.diff", "patch_cut": False}}, b"patch")
    )
    first = resolved_of(data, tmp_path)
    other = replace(first, run=replace(first.run, seed=1), plan=replace(first.plan, seed=1))
    operation, died = 0, True
    while died:
        resolved = replace(first, folder=tmp_path / str(operation))
        if before != "nothing":
            resolved.folder.mkdir()
            (resolved.folder / "plan.json").write_text(json.dumps(other.plan.to_dict()))
        died = dies(resolved, operation)
        begin(resolved)
        written = {part: json.loads((resolved.folder / f"{part}.json").read_text()) for part in run_folder.IDENTITY}
        assert written == {**run_folder.identity(first), "plan": first.plan.to_dict()}
        assert not list(resolved.folder.rglob(".*.tmp")), "what the killed one was writing is gone"
        operation += 1
    with pytest.raises(UserError, match="--seed: 3407 -> 1"):  # it is this run's now
        run_folder.check_folder(replace(other, folder=resolved.folder), None)
    assert operation > 20


@pytest.mark.parametrize("operation", range(40, 100, 15))
def test_a_run_that_was_killed_goes_on(operation, data, tmp_path):
    """In the first checkpoints too, between the rename and COMPLETE: 8 of 24 such kills stopped training for good."""
    code, _ = run_killed(data, tmp_path / "out", operation=operation, resume="auto")
    assert code in (0, KILLED)
    code, said = run_killed(data, tmp_path / "out", resume="auto")
    assert code == 0, said
    summary = json.loads((folder_of(tmp_path / "out") / "summary.json").read_text())
    assert summary["finished"] and summary["train_loss"] > 0


@pytest.mark.parametrize("resume", ["auto", None])
def test_folders_that_early_versions_left(resume, data, tmp_path):
    """A checkpoint without COMPLETE, and plan.json without its companions: each is nobody's and starts again."""
    options = {**OPTIONS, "resume": resume}
    assert run(data, tmp_path, **options, stop_after=1) == EXIT_INTERRUPTED
    folder = folder_of(tmp_path)
    (folder / "checkpoints" / "step-000001" / "COMPLETE").unlink()
    assert run(data, tmp_path, **options, stop_after=1) == EXIT_INTERRUPTED
    shutil.rmtree(folder / "checkpoints")
    (folder / "numerics.json").unlink()
    assert run(data, tmp_path, **{**options, "base_hps.eta0": 1e-3}) == 0
    assert json.loads((folder / "summary.json").read_text())["learning_rate"] == pytest.approx(8e-3)


@pytest.fixture(scope="module")
def one_step(data, tmp_path_factory) -> Path:
    """A run that was stopped after its first step; tests change copies of it."""
    out = tmp_path_factory.mktemp("one_step")
    assert run(data, out, **OPTIONS, stop_after=1) == EXIT_INTERRUPTED
    return out


@pytest.mark.parametrize(
    "part", ["plan", "report", "report.speed.seconds", "data", "data.samples_seen", "report.guard"]
)
@pytest.mark.parametrize("value", [None, "x", -1, [], {}])
def test_a_resume_of_a_checkpoint_of_another_shape(part, value, data, one_step, tmp_path, capsys):
    """With sums that fit. They were tracebacks."""
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True, symlinks=True)
    path = folder_of(tmp_path) / "checkpoints" / "step-000001"
    meta = json.loads((path / "meta.json").read_text())
    *outer, last = part.split(".")
    inner = meta
    for key in outer:
        inner = inner[key]
    inner[last] = value
    (path / "meta.json").write_text(json.dumps(meta))
    resealed(path)
    code = run(data, tmp_path, **OPTIONS, resume="auto", stop_after=1)
    assert code == 2 or (part == "report.guard" and not value)  # of versions without a guard
    assert code != 2 or "error: " in capsys.readouterr().err


@pytest.mark.parametrize("names", [("lease-000001", "config.yaml"), ("plan.json", "config.yaml")])
def test_a_run_folder_in_the_text_is_no_text(names, tmp_path):
    """With --train_data_dir . and the default --out_dir, config.yaml was new text, and no resume fitted the data."""
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "out" / "run").mkdir(parents=True)
    for name in names:
        (tmp_path / "out" / "run" / name).write_text("x: 1")
    with pytest.warns(UserWarning, match="1 file left out: a run folder"):
        assert [piece.key for piece in find_files(tmp_path)] == ["a.txt"]


@pytest.mark.filterwarnings("ignore:.*1 file left out. a run folder")
def test_a_run_in_its_own_text_goes_on(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Document {i} says: the cat sat on the mat. " * 5)
    assert run(tmp_path, tmp_path / "out", **OPTIONS, stop_after=1) == EXIT_INTERRUPTED
    assert run(tmp_path, tmp_path / "out", **OPTIONS, resume="auto") == 0


def test_nobody_is_told_to_remove_the_folder_of_a_run_that_trains(data, tmp_path, capsys):
    """The same command typed twice: the second was told to add --resume auto, or to remove the folder of the first."""
    assert run(data, tmp_path, **OPTIONS, stop_after=1) == EXIT_INTERRUPTED
    owner = take_lease(folder_of(tmp_path))
    assert run(data, tmp_path, **OPTIONS) == 2
    said = capsys.readouterr().err
    assert f"is in use by process {os.getpid()} on " in said and "Stop that process first" in said
    assert "remove the folder" not in said
    owner.close()
    assert run(data, tmp_path, **OPTIONS) == 2
    assert "or remove the folder" in capsys.readouterr().err


def test_an_identity_that_is_nested_too_deep(data, tmp_path):
    """It was a RecursionError; it is nobody's, as any other that is damaged."""
    assert run(data, tmp_path, **OPTIONS, stop_after=1) == EXIT_INTERRUPTED
    for name in ("plan.json", "summary.json", "config.yaml"):
        (folder_of(tmp_path) / name).write_text("[" * 100_000)
        assert run(data, tmp_path, **OPTIONS, resume="auto", stop_after=1) in (EXIT_INTERRUPTED, 0)


def test_a_checkpoint_says_whose_the_folder_is(data, tmp_path, capsys):
    """Where the identity is damaged, progress is kept: the run goes on, and another one is refused."""
    assert run(data, tmp_path, **OPTIONS, stop_after=1) == EXIT_INTERRUPTED
    (folder_of(tmp_path) / "numerics.json").write_bytes(b"")  # as after a power cut
    assert run(data, tmp_path, **OPTIONS) == 2
    assert "already holds this run with checkpoints" in capsys.readouterr().err
    assert run(data, tmp_path, **OPTIONS, resume="auto", seed=1) == 2
    assert "--seed: 3407 -> 1" in capsys.readouterr().err
    assert run(data, tmp_path, **OPTIONS, resume="auto") == 0


def test_files_that_killed_starts_left(data, tmp_path):
    """.plan.json.<pid>.tmp stayed for good; those of a process that runs, and a person's own files, must."""
    resolved = resolved_of(data, tmp_path)
    resolved.folder.mkdir()
    dead = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(dead, 0)
    names = {".plan.json.%d.tmp": False, ".notes.txt.%d.tmp": True, "plan.json.%d.tmp": True}
    paths = {resolved.folder / (name % dead): stays for name, stays in names.items()}
    paths[resolved.folder / f".plan.json.{os.getppid()}.tmp"] = True
    for path in paths:
        path.write_text("mine")
    begin(resolved)
    assert {path: path.exists() for path in paths} == paths
