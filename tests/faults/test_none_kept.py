"""--keep_last 0: a finished run leaves no checkpoint and is never trained again; until then nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killed_run import KILLED, OPTIONS, kill_at
from small_run import META, Run, step
from spawn import ended, forked
from tiny_run import folder_of, rows, run, saved_steps

from lit_gpt.checkpoint import Checkpointer
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.processes import Settings
from lit_gpt.lab.rows import Row
from lit_gpt.lab.study import Study
from lit_gpt.metrics.summary import write_summary
from lit_gpt.tools import inspect
from lit_gpt.train import reporter, run_folder
from lit_gpt.train.lease import take_lease
from lit_gpt.train.release import release_finished
from lit_gpt.train.save_retries import Saver
from lit_gpt.train.stopping import EXIT_INTERRUPTED

NONE: dict[str, Any] = {**OPTIONS, "keep_last": 0, "resume": "auto", "schedule": "constant"}


def files_of(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """Two steps that were cut after the first one, and went on; what the first one left was checked."""
    out = tmp_path_factory.mktemp("none_kept")
    assert run(data, out, **NONE, stop_after=1) == EXIT_INTERRUPTED
    assert saved_steps(out) == ["step-000001"]
    assert run(data, out, **NONE) == 0
    return out


def test_a_cut_run_keeps_its_newest_checkpoint_and_a_finished_one_none(finished):
    assert saved_steps(finished) == [] and list(rows(finished)) == [1, 2]
    assert json.loads((folder_of(finished) / "summary.json").read_text())["finished"]


@pytest.mark.parametrize("resume", ["auto", True])
def test_a_finished_run_is_not_trained_again(resume, data, finished, capsys):
    """Nor where it was copied without its checkpoints folder."""
    shutil.rmtree(folder_of(finished) / "checkpoints", ignore_errors=True)
    before = files_of(finished)
    assert run(data, finished, **{**NONE, "resume": resume}) == 0
    assert "finished already: 128 tokens. No checkpoint is left. Nothing to do." in capsys.readouterr().out
    assert files_of(finished) == before


def test_a_finished_run_that_kept_an_earlier_checkpoint_is_not_trained_from_there(data, tmp_path, capsys):
    """Three steps, of which the second is kept."""
    options = {**NONE, "max_tokens": 192, "keep_every": 2}
    assert run(data, tmp_path, **options) == 0
    assert saved_steps(tmp_path) == ["step-000002"]
    before = files_of(tmp_path)
    assert run(data, tmp_path, **{**options, "keep_last": 2}) == 0
    assert "finished already: 192 tokens" in capsys.readouterr().out and files_of(tmp_path) == before
    longer, summary = {**options, "max_tokens": 256}, folder_of(tmp_path) / "summary.json"
    old = summary.read_bytes()
    assert run(data, tmp_path, **longer, stop_after=1) == EXIT_INTERRUPTED, "a longer one goes on from it"
    summary.write_bytes(old)  # as if it had been killed
    assert run(data, tmp_path, **{**longer, "keep_last": 1}) == 0
    assert saved_steps(tmp_path) == ["step-000002", "step-000004"] and list(rows(tmp_path)) == [1, 2, 3, 4]
    summary.write_bytes(old)
    assert run(data, tmp_path, **{**longer, "keep_last": 1}) == 0
    assert json.loads(summary.read_text())["tokens"] == 256, "that of the smaller budget does not count"
    shutil.rmtree(folder_of(tmp_path) / "checkpoints/step-000004")
    assert run(data, tmp_path, **{**longer, "keep_last": 1}) == 0, "a person who removes the last one goes back"
    assert saved_steps(tmp_path) == ["step-000002", "step-000004"]


WRONG = {
    "without --resume": ({"resume": None}, "has finished, after 128 tokens, and none of its checkpoints"),
    "a longer budget": ({"max_tokens": 256}, "has finished, after 128 tokens, and none of its checkpoints"),
    "a longer budget, which must resume": ({"max_tokens": 256, "resume": True}, "has finished and left no checkpoint"),
    "another seed": ({"seed": 1}, "--seed: 3407 -> 1"),
    "a fork": ({"fork_from": "RUN", "train_name": "mup_fork"}, "has finished and left no checkpoint"),
    "a fork of a step": ({"fork_from": "RUN/checkpoints/step-000002", "train_name": "f"}, "and left no checkpoint"),
    "its weights": ({"init_from": "RUN", "train_name": "mup_init"}, "has finished and left no checkpoint"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_go_on_says_so_and_changes_nothing(what, data, finished, tmp_path, capsys):
    asked, says = WRONG[what]
    folder, before = str(folder_of(finished)), files_of(finished)
    asked = {key: value.replace("RUN", folder) if isinstance(value, str) else value for key, value in asked.items()}
    out = tmp_path if "RUN" in str(WRONG[what][0]) else finished
    assert run(data, out, **{**NONE, **asked}) == 2
    assert says in capsys.readouterr().err and files_of(finished) == before


def test_evaluations_say_it_in_a_sentence(finished):
    with pytest.raises(UserError, match=r"holds no complete checkpoint.*has finished and left no checkpoint"):
        load_model(folder_of(finished))
    assert "none is left" in inspect.run(folder_of(finished))


def test_a_finished_run_of_which_only_the_results_are_left_is_not_overwritten(data, finished, tmp_path, capsys):
    there = tmp_path / folder_of(finished).name
    there.mkdir()
    for name in ("summary.json", "metrics.jsonl"):
        shutil.copy(folder_of(finished) / name, there)
    assert run(data, tmp_path, **NONE) == 2
    assert "has finished, after 128 tokens" in capsys.readouterr().err
    assert sorted(path.name for path in there.iterdir()) == ["metrics.jsonl", "summary.json"]


def test_results_that_were_copied_in_half_are_not_overwritten(data, finished, tmp_path, capsys):
    there = tmp_path / folder_of(finished).name
    shutil.copytree(folder_of(finished), there)
    (there / "summary.json").write_text("{")
    before = files_of(tmp_path)
    assert run(data, tmp_path, **NONE) == 2
    assert "summary.json cannot be read" in capsys.readouterr().err and files_of(tmp_path) == before


@pytest.mark.parametrize("which", ["the summary", "the curve"])
def test_a_run_whose_end_could_not_be_written_keeps_its_checkpoint(which, data, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise NotWritten("no space")

    monkeypatch.setattr(reporter, "write_summary" if which == "the summary" else "draw_loss_curve", full)
    assert run(data, tmp_path, **NONE) == 3
    assert saved_steps(tmp_path) == ["step-000002"]


def end_of(kept: Run) -> Saver:
    """What is left to do of a run with the checkpoint of its last step: the summary, and then to delete."""
    assert kept.saver is not None
    values = {"step": 2, "tokens": META["tokens"]}
    report: Any = SimpleNamespace(folder=kept.folder, progress=SimpleNamespace(tokens=META["tokens"]))
    report.close = lambda code, saved: write_summary(kept.folder, values | {"finished": saved and code == 0})
    return Saver(kept.saver, report, 2)


def test_a_kill_at_any_moment_of_the_end_loses_nothing(tmp_path):
    """The checkpoint is whole until the summary says that the run has finished."""
    seen, code, kept, operation = set(), KILLED, Run(tmp_path), 0
    while code == KILLED:
        kept = Run(tmp_path / str(operation), keep_last=0)
        kept.save(1, 2)
        saver = end_of(kept)

        def ends(operation: int = operation, folder: Path = kept.folder, saver: Saver = saver) -> int:
            kill_at(operation, folder)
            saver.close(0, True)
            return 0

        code = ended(forked(ends))
        known = run_folder.finished_summary(kept.folder).get("tokens") == META["tokens"]
        whole = step(2) in kept.names()
        assert code in (0, KILLED) and (known or whole)
        assert not whole or kept.load() == 2
        seen.add((known, whole))
        operation += 1
    assert seen == {(False, True), (True, True), (True, False)} and not kept.names() and operation > 5


@pytest.fixture
def killed_late(data, tmp_path, monkeypatch) -> Path:
    """The folder of a run that was killed after its summary and before it deleted its checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "_release", lambda self: None)
        assert run(data, tmp_path / "row", **NONE) == 0
    assert saved_steps(tmp_path / "row") == ["step-000002"]
    return folder_of(tmp_path / "row")


def test_a_run_that_was_killed_before_it_deleted_does_so_when_it_is_seen_again(killed_late, data, capsys):
    """It kept its checkpoint for ever."""
    out = killed_late.parent
    assert run(data, out, **{**NONE, "keep_last": 1}) == 0, "who asks to keep it now keeps it"
    assert "finished already: 128 tokens. Nothing to do." in capsys.readouterr().out
    assert saved_steps(out) == ["step-000002"]
    assert run(data, out, **NONE) == 0
    said = (
        "finished already: 128 tokens. Deleted step-000002, which --keep_last 0 does not keep. No checkpoint is left."
    )
    assert said in capsys.readouterr().out and saved_steps(out) == []
    before = files_of(out)
    assert run(data, out, **NONE) == 0
    assert "Deleted" not in capsys.readouterr().out and files_of(out) == before


def test_a_ladder_deletes_it_too(killed_late, capsys):
    study, settings = Study((Row("row"),)), Settings(devices=(("cpu",),))
    assert Ladder(study, killed_late.parents[1]).run(settings) == 0
    assert "deleted step-000002, which --keep_last 0 does not keep" in capsys.readouterr().out
    assert saved_steps(killed_late.parent) == []


LATER = {
    "its options keep it": ("config.yaml", "keep_last: 0", "keep_last: 1"),
    "it has not finished": ("summary.json", '"finished": true', '"finished": false'),
    "its summary is damaged": ("summary.json", "{", ""),
    "its summary is of a smaller budget": ("summary.json", '"tokens": 128', '"tokens": 64'),
    "its summary is of an earlier step": ("summary.json", '"step": 2', '"step": 1'),
    "nobody knows its options": ("config.yaml", "keep_every", "kept_every"),
}


@pytest.mark.parametrize("why", LATER)
def test_nothing_else_is_deleted(why, killed_late):
    name, old, new = LATER[why]
    text = (killed_late / name).read_text()
    assert old in text
    (killed_late / name).write_text(text.replace(old, new, 1))
    before = files_of(killed_late)
    assert release_finished(killed_late) == [] and files_of(killed_late) == before


def test_nothing_is_deleted_in_the_folder_of_another_process(killed_late):
    lease = take_lease(killed_late)
    assert release_finished(killed_late) == [] and saved_steps(killed_late.parent) == ["step-000002"]
    lease.close()
    assert release_finished(killed_late) == ["step-000002"]


@pytest.mark.parametrize(("code", "saved"), [(75, True), (4, True), (0, False)])
def test_only_a_finished_run_loses_its_checkpoint(code, saved, tmp_path):
    kept = Run(tmp_path, keep_last=0)
    kept.save(1, 2)
    end_of(kept).close(code, saved)
    assert kept.names() == [step(2)] and kept.load() == 2


@pytest.mark.parametrize(("code", "left"), [(0, [2]), (75, [1, 2])])
def test_the_end_deletes_what_a_killed_save_left(code, left, tmp_path, monkeypatch):
    """Killed between the name of its last checkpoint and the deletion of an older one, a run kept that for good."""
    kept = Run(tmp_path, keep_last=1)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_retain", lambda self: None)
        kept.save(1, 2)
    end_of(kept).close(code, True)
    assert kept.names() == [step(n) for n in left]


def test_the_summary_of_a_shorter_budget_does_not_count(tmp_path):
    """A run had finished, went on with a larger budget, and could not write its new summary."""
    kept = Run(tmp_path, keep_last=0)
    kept.save(1, 2)
    write_summary(tmp_path, {"finished": True, "step": 1, "tokens": META["tokens"] - 1})
    saver = end_of(kept)
    saver.report.close = lambda *_: None  # type: ignore[method-assign]
    saver.close(0, True)
    assert kept.names() == [step(2)]
