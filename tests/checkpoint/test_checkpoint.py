"""Saving, publishing, finding, keeping, exporting: one process."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from spawn import forks, start
from tiny_model import build_adamw, build_model, same, snapshot, train_step

from lit_gpt.checkpoint import (
    Checkpointer,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_exported,
    load_full,
    load_weights,
    read_meta,
    write_exported,
)
from lit_gpt.errors import UserError
from lit_gpt.parallel import start_runtime

META = {"tokens": 96, "plan": {"depth": 3}, "data_state": {"samples_seen": 8}}


class Run:
    """One process with a model, an optimizer, and a run folder."""

    def __init__(self, folder: Path):
        self.folder, self.runtime = folder, start_runtime()
        self.model = build_model(self.runtime)
        self.optimizer = build_adamw(self.model)
        self.steps = 0

    def saver(self, **options) -> Checkpointer:
        return Checkpointer(self.folder / "checkpoints", self.runtime, **{"keep_last": 2, **options})

    def train(self) -> None:
        train_step(self.model, self.optimizer, self.runtime, self.steps)
        self.steps += 1

    def snapshot(self):
        return snapshot(self.model, self.optimizer)

    def load(self, resume: bool | str = True):
        return load_checkpoint(find_checkpoint(self.folder, resume), self.model, self.optimizer, self.runtime)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder / "checkpoints")]


def test_load_restores_every_bit(run):
    run.train()
    saver = run.saver()
    saver.save(1, run.model, run.optimizer, META)
    saver.close()
    saved = run.snapshot()
    other = Run(run.folder)
    assert other.load() == {**META, "version": 1, "step": 1}
    assert same(other.snapshot(), saved)
    for each in (run, other):
        train_step(each.model, each.optimizer, each.runtime, step=1)
    assert same(other.snapshot(), run.snapshot())


def test_what_is_written_is_the_state_at_the_call(run, monkeypatch):
    """Training on, with the write held back, changes neither tensors nor meta; async equals sync."""
    go = threading.Event()
    write = Checkpointer._write
    monkeypatch.setattr(Checkpointer, "_write", lambda *args: go.wait() and write(*args))
    run.train()
    saved, meta = run.snapshot(), {"tokens": 0, "report": [1]}
    saver = run.saver()
    saver.save(1, run.model, run.optimizer, meta)
    meta["report"].append(2)
    run.train()
    assert names(run.folder) == []
    go.set()
    saver.wait()
    other = Run(run.folder)
    assert other.load()["report"] == [1]
    assert same(other.snapshot(), saved)
    saver = run.saver(async_save=False)
    saver.save(2, run.model, run.optimizer, {"tokens": 0})
    assert names(run.folder) == ["step-000001", "step-000002"]
    other.load()
    assert same(other.snapshot(), run.snapshot())


def test_retention(run):
    saver = run.saver(keep_last=2, keep_every=3, async_save=False)
    for step in range(1, 9):
        saver.save(step, run.model, run.optimizer, {"tokens": 0})
    assert names(run.folder) == ["step-000003", "step-000006", "step-000007", "step-000008"]
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == names(run.folder)
    with pytest.raises(UserError, match="--keep_last is -1"):
        run.saver(keep_last=-1)


def test_newest_is_the_one_published_last(run):
    """Also after going back to an older step and saving that step anew."""
    saver = run.saver(async_save=False)
    for step in (10, 20):
        saver.save(step, run.model, run.optimizer, {"tokens": 0, "branch": "old"})
    run.train()
    saver.save(10, run.model, run.optimizer, {"tokens": 0, "branch": "new"})
    assert names(run.folder) == ["step-000020", "step-000010"]
    assert Run(run.folder).load()["branch"] == "new"
    saver.save(15, run.model, run.optimizer, {"tokens": 0})
    assert names(run.folder) == ["step-000010", "step-000015"]


def test_find(run, tmp_path):
    assert find_checkpoint(tmp_path, False) is None
    assert find_checkpoint(tmp_path, "auto") is None
    with pytest.raises(UserError, match="--resume true: no complete checkpoint"):
        find_checkpoint(tmp_path, True)
    saver = run.saver(async_save=False)
    for step in (1, 2):
        saver.save(step, run.model, run.optimizer, {"tokens": 0})
    one, two = (tmp_path / "checkpoints" / f"step-00000{i}" for i in (1, 2))
    elsewhere = tmp_path / "elsewhere"
    assert find_checkpoint(tmp_path, True) == find_checkpoint(tmp_path, "auto") == two
    assert find_checkpoint(elsewhere, str(tmp_path)) == find_checkpoint(elsewhere, str(two.parent)) == two
    assert find_checkpoint(elsewhere, str(one)) == one
    (two / "COMPLETE").unlink()
    assert find_checkpoint(tmp_path, True) == one
    with pytest.raises(UserError, match="step-000002"):
        find_checkpoint(tmp_path, str(two))


def test_a_failed_save_is_said_and_the_next_one_tries_again(run, monkeypatch, capsys):
    """It ended the run, or nobody knew: training goes on, and `wait` says what is not on the disk."""
    saver = run.saver()
    saver.save(1, run.model, run.optimizer, {"tokens": 0})
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed.checkpoint, "save", full_disk)
        saver.save(2, run.model, run.optimizer, {"tokens": 0})
        assert not saver.wait()
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
    assert all(words in line for words in ("NOT SAVED: the checkpoint of step 2 ", "No space left", "is step-000001"))
    saver.save(3, run.model, run.optimizer, {"tokens": 0})
    assert saver.wait() and saver.failures == 1
    saver.close()
    assert names(run.folder) == ["step-000001", "step-000003"]
    with pytest.raises(TypeError):  # not JSON: said at the call
        saver.save(4, run.model, run.optimizer, {"tokens": 0, "plan": object()})


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def save_then_hang(folder: Path, written) -> None:
    """A process that is killed in its second save: all tensors on the disk, nothing published."""
    run = Run(folder)
    saver = run.saver()
    saver.save(1, run.model, run.optimizer, {"tokens": 0})
    run.train()
    write = saver._write
    saver.wait()
    saver._write = lambda *args: (write(*args), written.set(), time.sleep(600))
    saver.save(2, run.model, run.optimizer, {"tokens": 0})


def test_kill_during_a_save_leaves_the_one_before(tmp_path):
    written = forks().Event()
    process = start(save_then_hang, tmp_path, written)
    assert written.wait(120)
    process.kill()
    process.join()
    assert (tmp_path / "checkpoints" / ".tmp-step-000002" / ".metadata").exists()
    run = Run(tmp_path)
    fresh = snapshot(run.model)
    assert run.load("auto")["step"] == 1
    assert same(snapshot(run.model), fresh)
    run.saver().close()
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_export_round_trip(run, tmp_path, suffix):
    run.train()
    saver = run.saver()
    saver.save(1, run.model, run.optimizer, META)
    saver.close()
    file = write_exported(*load_full(find_checkpoint(tmp_path, True)), tmp_path / "exported" / f"model{suffix}")
    weights, meta = load_exported(file)
    assert meta == {**META, "version": 1, "step": 1}
    assert same(weights, snapshot(run.model))
    other = build_model(run.runtime)
    assert load_weights(file, other, run.runtime) == meta
    assert same(snapshot(other), weights)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_load_weights_says_what_does_not_fit(run, tmp_path):
    saver = run.saver(async_save=False)
    saver.save(1, run.model, run.optimizer, {"tokens": 0})
    file = write_exported(*load_full(tmp_path / "checkpoints" / "step-000001"), tmp_path / "model.pth")
    tied = build_model(run.runtime, tied=True)
    wide = torch.nn.Module()
    wide.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
    wide.wte = torch.nn.Embedding(51, 21)
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=r"not part of this run: .*head.weight"):
            load_weights(path, tied, run.runtime)
        with pytest.raises(
            UserError, match=r"missing: .*extra\n(.|\n)*wte.weight is \(51, 20\), the model has \(51, 21\)"
        ):
            load_weights(path, wide, run.runtime)
    with pytest.raises(UserError, match=r"model.pt has the suffix '.pt'"):
        write_exported(*load_full(tmp_path / "checkpoints" / "step-000001"), tmp_path / "model.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="not written by an export"):
        load_exported(tmp_path / "foreign.pth")


def test_another_optimizer_is_an_error(run):
    run.train()
    saver = run.saver(async_save=False)
    saver.save(1, run.model, run.optimizer, {"tokens": 0})
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
    run.train()
    with pytest.raises(UserError, match="momentum_buffer"):
        run.load()


def test_another_version_is_an_error(run):
    saver = run.saver(async_save=False)
    saver.save(1, run.model, run.optimizer, {"tokens": 0})
    path = run.folder / "checkpoints" / "step-000001"
    meta = read_meta(path)
    (path / "meta.json").write_text(json.dumps({**meta, "version": 0}))
    with pytest.raises(UserError, match="version 0"):
        run.load()
    with pytest.raises(UserError, match="no complete checkpoint"):
        read_meta(run.folder)
