"""What a person puts beside checkpoints is left alone."""

from __future__ import annotations

import shutil

import pytest
from small_run import Run, step

from lit_gpt.errors import UserError


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path, keep_last=1)
    run.save(2)
    return run


def go_on(run: Run) -> list[str]:
    """Save 4 and 6 with a new saver, load; what lies in the folder."""
    run.saver = None
    run.save(4, 6)
    assert run.load() == 6
    return run.names()


def test_a_copy_is_no_checkpoint_of_the_run_but_can_be_named(run):
    """The copy's name stopped every later save with an error."""
    best = run.checkpoints / f"{step(2)}-best"
    shutil.copytree(run.checkpoints / step(2), best)
    assert go_on(run) == [best.name, step(6)] == sorted([best.name, step(6)])
    assert run.load(str(best)) == 2


def test_a_checkpoint_on_another_disk_is_used_and_never_deleted(run, tmp_path):
    """Retiring it through the link was an error; deleting what it points to would have been worse."""
    moved = tmp_path / "other disk"
    shutil.move(run.checkpoints / step(2), moved)
    (run.checkpoints / step(2)).symlink_to(moved)
    assert run.load() == 2
    assert go_on(run) == [step(2), step(6)]
    run.save(2)
    assert (moved / "COMPLETE").is_file() and not (run.checkpoints / step(2)).is_symlink()
    assert run.load() == 2


@pytest.mark.parametrize("name", [".tmp-x", ".tmp-old-x", "step-best", "step-2", ".tmp-step-000002-mine", "notes"])
@pytest.mark.parametrize("folder", [True, False])
def test_strangers_stay(run, name, folder):
    """A file .tmp-x was an error at every start, and a folder was deleted."""
    mine = run.checkpoints / name
    (mine / "thesis").mkdir(parents=True) if folder else mine.write_text("thesis")
    assert go_on(run) == sorted([name, step(6)])


def test_a_file_in_the_way_fails_one_save_and_no_other(run, capsys):
    (run.checkpoints / step(4)).write_text("mine")
    run.save(4)
    assert not run.saver.wait() and f"{step(4)} is in the way" in capsys.readouterr().err
    run.save(6)
    assert run.saver.wait() and run.names() == [step(4), step(6)] and run.load() == 6


def test_a_named_step_that_is_no_checkpoint_is_one_sentence(run, tmp_path):
    with pytest.raises(UserError, match="There is no complete checkpoint at"):
        run.load(str(tmp_path / "nothing"))
