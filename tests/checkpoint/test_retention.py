"""Which checkpoints stay: against a naive rule, with damaged metas and links among them, and after a kill."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_gpt.checkpoint import CHECKPOINT_VERSION, Checkpointer, list_checkpoints, save
from lit_gpt.checkpoint.retention import LOSS, improves, loss_of, why_kept
from lit_gpt.parallel import start_runtime


def made(folder: Path, step: int, **meta: Any) -> Path:
    """What retention reads of a checkpoint."""
    path = folder / f"step-{step:06d}"
    path.mkdir()
    (path / "COMPLETE").write_text(f"{step}\n")
    (path / "meta.json").write_text(json.dumps({"version": CHECKPOINT_VERSION, "step": step, "tokens": 0, **meta}))
    return path


def kept(*options: Any, **more: Any) -> list[str]:
    return [path.name[-2:] for path, why in why_kept(*options, **more).items() if why]


def test_every_reason_by_itself(tmp_path: Path) -> None:
    losses = {10: 5.0, 20: 3.0, 30: 3.0, 40: math.nan, 50: 4.0}
    paths = [made(tmp_path, step, validation={LOSS: loss}) for step, loss in losses.items()]
    paths += [made(tmp_path, 60, kept="end of the decay at 1,000 tokens"), made(tmp_path, 70)]
    assert kept(paths, 1) == ["60", "70"]
    assert kept(paths, 2) == ["60", "70"]
    assert kept(paths, 99) == ["10", "20", "30", "40", "50", "60", "70"]
    assert kept(paths, 1, 20) == ["20", "40", "60", "70"]
    assert kept(paths, 1, 0, True) == ["20", "60", "70"], "of equal ones the oldest, which was the best first"
    reasons = why_kept(paths, 2, 20, True)
    assert reasons[paths[0]] == []
    assert reasons[paths[1]] == ["a multiple of 20 steps", "the best validation loss"]
    assert reasons[paths[5]] == [
        "end of the decay at 1,000 tokens", "one of the newest 2", "a multiple of 20 steps"
    ]  # fmt: skip
    assert reasons[paths[6]] == ["one of the newest 2"] and why_kept(paths, 1)[paths[6]] == ["the newest"]
    assert why_kept([], 2, 1, True) == {}


def test_none_is_kept_of_a_run_that_has_finished(tmp_path: Path) -> None:
    """Until then the newest is; other reasons hold on."""
    paths = [
        made(tmp_path, step, validation={LOSS: 9.0 - step}, kept="a decay's end" * (step > 10)) for step in (10, 20)
    ]
    assert why_kept(paths, 0) == {paths[0]: [], paths[1]: ["a decay's end", "the newest, until the run has finished"]}
    assert kept(paths, 0, finished=True) == [] and kept(paths, 1, finished=True) == ["20"]
    assert kept(paths, 0, 10, finished=True) == ["10", "20"] and kept(paths, 0, 0, True, finished=True) == ["20"]


@pytest.mark.parametrize("seed", range(20))
def test_a_history_of_saves_equals_a_naive_one(seed: int, tmp_path: Path) -> None:
    """Save, delete what has no reason, save again; beside it a list of numbers and the rule in a few words."""
    draw = random.Random(seed)
    last, every, best = draw.randint(0, 3), draw.choice([0, 2, 5]), draw.random() < 0.7
    there: dict[int, float | None] = {}
    for step in range(1, 15):
        loss = draw.choice([None, math.nan, math.inf, float(draw.randint(1, 9))])
        measured = loss if loss is not None and math.isfinite(loss) else None
        known = [value for value in there.values() if value is not None]
        paths = [tmp_path / f"step-{s:06d}" for s in there]
        assert improves({} if loss is None else {LOSS: loss}, paths) == (
            measured is not None and measured < min(known, default=math.inf)
        )
        made(tmp_path, step, validation={} if loss is None else {LOSS: loss})
        there[step] = measured
        stay = set(list(there)[-(last or 1) :]) | {s for s in there if every and s % every == 0}
        if best and (values := [value for value in there.values() if value is not None]):
            stay.add(next(s for s, value in there.items() if value == min(values)))
        for path, why in why_kept(list_checkpoints(tmp_path), last, every, best).items():
            if not why:
                shutil.rmtree(path)
        there = {s: value for s, value in there.items() if s in stay}
        assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{s:06d}" for s in there]


STRANGE: dict[str, Any] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[]"),
    "another version": lambda path: path.write_text('{"version": 99, "step": 1, "tokens": 1}'),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("how", STRANGE)
def test_what_cannot_be_read_stays_and_does_not_count(how: str, tmp_path: Path) -> None:
    paths = [made(tmp_path, step, validation={LOSS: float(step)}) for step in (1, 2, 3)]
    STRANGE[how](paths[2] / "meta.json")
    reasons = why_kept(paths, 1, 0, True)
    assert reasons == {
        paths[0]: ["the best validation loss"], paths[1]: ["the newest"], paths[2]: ["its meta.json cannot be read"]
    }  # fmt: skip


def test_a_link_stays_and_does_not_count(tmp_path: Path) -> None:
    paths = [made(tmp_path, step, validation={LOSS: float(step)}) for step in (1, 2, 3)]
    for path in (paths[0], paths[2]):
        path.rename(tmp_path / f"elsewhere-{path.name}")
        path.symlink_to(tmp_path / f"elsewhere-{path.name}")
    reasons = why_kept(paths, 1, 0, True)
    assert reasons[paths[0]] == reasons[paths[2]] == ["a link, which a person made"]
    assert reasons[paths[1]] == ["the newest", "the best validation loss"]


@pytest.mark.parametrize("value", [None, "3", True, [], {}, 1e400, 10**400, {LOSS: {}}], ids=lambda v: str(v)[:9])
def test_values_that_are_no_loss(value: object, tmp_path: Path) -> None:
    """As a meta from elsewhere may have them."""
    assert loss_of({LOSS: value}) == loss_of(value) == math.inf
    paths = [made(tmp_path, 1, validation={LOSS: value}), made(tmp_path, 2, validation=value, kept=None)]
    assert kept(paths, 1, 0, True) == ["02"]


class Run:
    """A model of a few numbers, and its saver."""

    def __init__(self, folder: Path, **options: Any):
        self.folder, self.model = folder, nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.saver = Checkpointer(folder, start_runtime(), **{"keep_last": 1, "async_save": False, **options})

    def save(self, step: int, **meta: Any) -> list[str]:
        self.saver.save(step, self.model, self.optimizer, {"tokens": step, **meta})
        return self.names()

    def names(self) -> list[str]:
        return [path.name[-2:] for path in sorted(self.folder.iterdir())]


def test_the_saver_deletes_by_the_rule(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_best=True)
    run.save(1, validation={LOSS: 3.0})
    assert run.save(2, validation={LOSS: 2.0}) == ["02"]
    assert run.save(3, validation={LOSS: math.nan}) == ["02", "03"]
    assert run.save(4, kept="a decay ends here") == ["02", "04"]
    assert not run.saver.improves({LOSS: 2.0}) and run.saver.improves({LOSS: 1.9})
    assert run.save(5, validation={LOSS: 1.0}) == ["04", "05"]
    assert not Run(tmp_path).saver.improves({LOSS: 0.1}), "nobody asked for the best"
    assert Run(tmp_path).save(6) == ["04", "06"]


def test_a_better_one_in_the_background_counts(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_best=True, async_save=True)
    run.saver.save(1, run.model, run.optimizer, {"tokens": 1, "validation": {LOSS: 1.0}})
    assert not run.saver.improves({LOSS: 1.5})
    run.saver.close()


def test_a_kill_between_the_new_best_and_the_old_one_is_tidied(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path, keep_best=True)
    run.save(1, validation={LOSS: 3.0})
    run.save(2)
    with monkeypatch.context() as patch:  # nothing happens any more once the new one is published
        patch.setattr(save, "discard", lambda path: False)
        assert run.save(3, validation={LOSS: 2.0}) == ["01", "02", "03"]
    again = Run(tmp_path, keep_best=True)
    assert not again.saver.improves({LOSS: 2.5}) and again.names() == ["01", "02", "03"]
    assert again.save(4) == ["03", "04"]


def test_steps_that_are_saved_again_keep_their_order(tmp_path: Path) -> None:
    """After a run went back to an older step, the one published last is the newest."""
    run = Run(tmp_path, keep_last=2)
    for step in (10, 20, 10):
        names = run.save(step)
    assert names == ["10", "20"] and run.save(15) == ["10", "15"]
