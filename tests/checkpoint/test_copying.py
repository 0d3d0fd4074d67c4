"""copy_checkpoint: the same checkpoint in another place, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_gpt.checkpoint import Checkpointer, copying, damage, find_checkpoint, list_checkpoints, load_checkpoint
from lit_gpt.checkpoint.copying import copy_checkpoint
from lit_gpt.errors import UserError
from lit_gpt.parallel import start_runtime


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2 and 3, whose weights are the step."""
    model = nn.Linear(30, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = Checkpointer(tmp_path / "run" / "checkpoints", start_runtime(), keep_last=9, async_save=False)
    for step in (1, 2, 3):
        for p in model.parameters():
            p.data.fill_(step)
        saver.save(step, model, optimizer, {"tokens": 10 * step})
    return tmp_path / "run" / "checkpoints"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weight_at(place: Path) -> float:
    """The weight of the newest checkpoint of a run folder."""
    model = nn.Linear(30, 20)
    path = find_checkpoint(place, True)
    assert path is not None
    load_checkpoint(path, model, torch.optim.SGD(model.parameters(), lr=0.1), start_runtime())
    return model.weight[0, 0].item()


def test_a_copy_has_the_same_bytes_and_loads(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    (run / "step-000002" / "my thoughts").write_text("stay here")
    copied = copy_checkpoint(run / "step-000002", tmp_path / "far" / "away" / "checkpoints")
    assert copied == tmp_path / "far" / "away" / "checkpoints" / "step-000002" and damage(copied) is None
    assert contents(copied) == {name[12:]: data for name, data in before.items() if name.startswith("step-000002/")}
    assert [path.name for path in copied.parent.iterdir()] == ["step-000002"]
    assert weight_at(tmp_path / "far" / "away") == 2
    assert contents(run) == before | {"step-000002/my thoughts": b"stay here"}


def test_copies_keep_their_order_and_their_step(run: Path, tmp_path: Path) -> None:
    """Also of a folder that a person renamed."""
    os.rename(run / "step-000001", run / "step-000001-best")
    to = tmp_path / "to" / "checkpoints"
    for name in ("step-000003", "step-000001-best", "step-000002"):
        copy_checkpoint(run / name, to)
    assert [path.name for path in list_checkpoints(to)] == ["step-000001", "step-000002", "step-000003"]
    assert weight_at(tmp_path / "to") == 3


def test_an_early_checkpoint_without_sums(run: Path, tmp_path: Path) -> None:
    (run / "step-000002" / "SHA256SUMS").unlink()
    (run / "step-000002" / "COMPLETE").write_text(str(10**18))
    copied = copy_checkpoint(run / "step-000002", tmp_path / "to" / "checkpoints")
    assert contents(copied) == contents(run / "step-000002") and weight_at(tmp_path / "to") == 2


def test_a_damaged_one_is_refused(run: Path, tmp_path: Path) -> None:
    data = run / "step-000002" / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"step-000002 is damaged: its file __0_0.distcp is not what was written"):
        copy_checkpoint(run / "step-000002", tmp_path / "to" / "checkpoints")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_is_not_replaced(kind: str, run: Path, tmp_path: Path) -> None:
    final = tmp_path / "to" / "step-000002"
    final.parent.mkdir()
    {"folder": final.mkdir, "file": final.touch, "link": lambda: final.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match="is there already, and is not replaced"):
        copy_checkpoint(run / "step-000002", final.parent)
    assert [path.name for path in final.parent.iterdir()] == ["step-000002"]


def fails(at: int, how: Any) -> Any:
    """A copyfile whose n-th call goes wrong."""
    copyfile, calls = shutil.copyfile, iter(range(99))

    def patched(source: Path, target: Path) -> None:
        copyfile(source, target)
        if next(calls) == at:
            how(target)

    return patched


def no_room(target: Path) -> None:
    raise OSError(28, "No space left on device")


def flipped(target: Path) -> None:
    data = target.read_bytes()
    target.write_bytes(bytes([data[0] ^ 4]) + data[1:])


def stopped(target: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how, error", [(no_room, UserError), (flipped, UserError), (stopped, KeyboardInterrupt)])
@pytest.mark.parametrize("there", [True, False])
def test_a_copy_that_fails_leaves_nothing(how: Any, error: type, there: bool, run: Path, tmp_path: Path) -> None:
    """At each of its files: meta, index, data, sums, marker."""
    to = tmp_path / "to" / "checkpoints"
    if there:
        copy_checkpoint(run / "step-000001", to)
    before = sorted(tmp_path.rglob("*"))
    for at in range(5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as caught:
            patch.setattr(copying.shutil, "copyfile", fails(at, how))
            copy_checkpoint(run / "step-000002", to)
        assert error is not UserError or ("nothing of the copy is left" in str(caught.value)), at
        assert sorted(tmp_path.rglob("*")) == before
    (to / ".tmp-step-000002").mkdir(parents=True)  # left by a copy that was killed
    copy_checkpoint(run / "step-000002", to)
    assert weight_at(tmp_path / "to") == 2


def test_a_disk_that_is_really_full(run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", small], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(UserError, match="No space left"):
            copy_checkpoint(run / "step-000002", small / "to" / "checkpoints")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_place_that_cannot_be_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for to in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / ("n" * 300)):
        with pytest.raises(UserError) as caught:
            copy_checkpoint(run / "step-000002", to)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}
