"""Files that are missing, cut, empty or changed by one bit: never loaded in silence, and the one before is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from small_run import META, Run, step
from spawn import run_distributed
from tiny_model import build_adamw, build_model

from lit_gpt.checkpoint import (
    Checkpointer,
    find_checkpoint,
    load_checkpoint,
    load_exported,
    load_full,
    write_exported,
)
from lit_gpt.checkpoint.contents import damage
from lit_gpt.errors import UserError
from lit_gpt.parallel import start_runtime
from lit_gpt.tools import inspect
from lit_gpt.utils.files import digest

FILES = ("__0_0.distcp", ".metadata", "meta.json", "SHA256SUMS", "COMPLETE")
DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: flip(path, path.stat().st_size // 3),
}


def flip(path: Path, at: int) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = Run(tmp_path_factory.mktemp("whole"))
    run.save(2, 4)
    return run.folder


@pytest.fixture
def run(whole, tmp_path) -> Run:
    shutil.copytree(whole, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_whole_checkpoint_is_used_and_it_is_said(name, how, run, capsys):
    """A cut file was a traceback although a good checkpoint lay beside it, and flipped bits were loaded."""
    newest = run.checkpoints / step(4)
    DAMAGES[how](newest / name)
    for resume in ("auto", True, str(run.folder)):
        assert run.load(resume) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{step(2)} is used" in line and f"{step(4)}: " in line and name in line
        assert line.endswith(".") and not line.endswith("..")
    with pytest.raises(UserError) as caught:
        run.load(str(newest))
    assert "\n" not in str(caught.value) and step(4) in str(caught.value)
    with pytest.raises(UserError):
        load_full(newest)
    with pytest.raises(UserError, match=f"{step(4)}  damaged: .*\n{step(2)}  whole"):
        inspect.main(["checkpoint", str(run.folder), "--verify"])
    run.save(5)
    assert run.load() == 5


def test_every_bit_counts(run):
    """Of every file, 40 bits at even distances."""
    newest = run.checkpoints / step(4)
    for name in FILES:
        size = (newest / name).stat().st_size
        for at in range(0, size, max(size // 40, 1)):
            flip(newest / name, at)
            assert damage(newest), (name, at)
            flip(newest / name, at)
            assert not damage(newest)


@pytest.mark.parametrize(("seconds", "seen"), [(0, True), (60, False)])
def test_a_change_within_a_tick_of_the_file_system_s_clock_is_seen(seconds, seen, tmp_path):
    """The time of a change may be that of the one before. Of a file that rests, the sum is computed once."""
    path, when = tmp_path / "file", time.time_ns() - seconds * 10**9
    found = []
    for content in (b"a", b"b"):
        path.write_bytes(content)
        os.utime(path, ns=(when, when))
        found.append(digest(path))
    assert (found[0] != found[1]) == seen


@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
@pytest.mark.parametrize("name", FILES[:3])
def test_early_checkpoints_without_sums_load_and_their_lengths_are_checked(name, how, run, capsys):
    for i in (2, 4):
        (run.checkpoints / step(i) / "SHA256SUMS").unlink()
        (run.checkpoints / step(i) / "COMPLETE").write_text(str(1_700_000_000_000_000_000 + i))
    assert run.load() == 4
    assert capsys.readouterr().err == ""
    DAMAGES[how](run.checkpoints / step(4) / name)
    assert run.load() == 2
    assert name in capsys.readouterr().err


def test_when_none_is_whole_nothing_starts_anew(run):
    """`--resume auto` must not begin at step 0 beside checkpoints that a person could restore."""
    for i in (2, 4):
        flip(run.checkpoints / step(i) / "__0_0.distcp", 100)
    with pytest.raises(UserError, match=r"No checkpoint at .* is whole \(step-000004: .*; step-000002: "):
        run.load("auto")


def save_and_find(folder: Path) -> tuple[str, int]:
    """Two ranks, a data file of each; that of rank 1 is damaged in the newest checkpoint, and every rank checks one."""
    runtime = start_runtime()
    model = build_model(runtime)
    optimizer = build_adamw(model, "fused")
    saver = Checkpointer(folder / "checkpoints", runtime, keep_last=2)
    for i in (1, 2):
        saver.save(i, model, optimizer, {"tokens": i})
    saver.close()
    if runtime.is_main:
        flip(folder / "checkpoints" / step(2) / "__1_0.distcp", 5000)
    runtime.barrier()
    found = find_checkpoint(folder, True, runtime)
    assert found is not None
    return found.name, load_checkpoint(found, model, optimizer, runtime)["step"]


def test_ranks_share_the_files_and_agree(tmp_path):
    assert run_distributed(save_and_find, 2, tmp_path) == [(step(1), 1)] * 2


def test_verify_says_what_is_whole(run, tmp_path, capsys):
    assert inspect.main(["checkpoint", str(run.folder), "--verify"]) == 0
    assert capsys.readouterr().out.split() == [step(4), "whole", step(2), "whole"]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--status", "SHA256SUMS"], cwd=run.checkpoints / step(4), check=True)
    file = write_exported({"a": torch.ones(3)}, {"version": 1}, tmp_path / "m.pth")
    assert inspect.main(["checkpoint", str(file), "--verify"]) == 0
    with pytest.raises(UserError, match="There is no checkpoint at"):
        inspect.main(["checkpoint", str(tmp_path / "nothing"), "--verify"])


WEIGHTS = {
    "a": torch.arange(48.0).reshape(6, 8).T,  # not contiguous
    "b": torch.tensor(3, dtype=torch.int64),
    "c": torch.ones(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_export_is_one_sentence(suffix, tmp_path):
    """One flipped bit in an exported file changed the loss without a word."""
    weights = {name: t.contiguous() for name, t in WEIGHTS.items()} if suffix == ".safetensors" else WEIGHTS
    path = write_exported(weights, {**META, "version": 1}, tmp_path / f"m{suffix}")
    whole = path.read_bytes()
    silent = 0
    for at in range(0, len(whole), max(len(whole) // 150, 1)):
        flip(path, at)
        try:
            found, meta = load_exported(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # padding, and other bytes that mean nothing
            silent += 1
            assert meta == {**META, "version": 1}
            assert all(torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in weights.items())
        path.write_bytes(whole)
    assert silent < 120
    data = whole.index(torch.ones(5, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    flip(path, data + 3)
    with pytest.raises(UserError, match="is damaged: its contents are not what was written"):
        load_exported(path)


def test_early_exports_without_a_fingerprint_load(tmp_path):
    torch.save({"model": WEIGHTS, "meta": {"version": 1}}, tmp_path / "m.pth")
    found, meta = load_exported(tmp_path / "m.pth")
    assert meta == {"version": 1} and torch.equal(found["a"], WEIGHTS["a"])
