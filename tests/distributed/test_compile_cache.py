"""--compile_cache: compilers write there, a copy is used, and what is damaged or of other machines is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from lit_gpt.parallel.compile_cache import SUMS, CompileCache, kind
from lit_gpt.utils import phases

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the compilers, which `use` changes, are as before afterwards."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_CACHE_AUTOTUNING"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def compiled(folder: Path) -> CompileCache:
    """As after a first step: what compilers wrote, a lock of theirs, and the sums."""
    cache = CompileCache(str(folder), CPU)
    assert (cache.check(), cache.use()) == ("", "")
    inner = Path(cache_dir()) / "fxgraph" / "ab"
    inner.mkdir(parents=True)
    (inner / "code").write_bytes(b"machine code")
    (inner / "code.lock").touch()
    cache.keep()
    return cache


def test_the_compilers_are_given_the_folder(tmp_path: Path) -> None:
    cache = compiled(tmp_path / "cache")
    assert cache.place == tmp_path / "cache" / kind(CPU)
    assert cache_dir() == str(cache.place / "inductor") and os.environ["TRITON_CACHE_DIR"] == str(
        cache.place / "triton"
    )
    assert "code.lock" not in (cache.place / SUMS).read_text() and "ab/code" in (cache.place / SUMS).read_text()


def test_a_copy_is_used_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(compiled(tmp_path / "cache").place.parent, tmp_path / "copy")  # type: ignore[union-attr]
    copy = CompileCache(str(tmp_path / "copy"), CPU)
    assert copy.check() == "" and copy.place is not None
    (copy.place / "inductor" / "younger").touch()  # another run compiles
    assert copy.check() == ""


@pytest.mark.parametrize("damage", ["changed", "missing", "sums"])
def test_what_is_damaged_is_removed_and_said(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture) -> None:
    cache = compiled(tmp_path)
    assert cache.place is not None
    code = cache.place / "inductor" / "fxgraph" / "ab" / "code"
    code.write_bytes(b"machine cod3") if damage == "changed" else code.unlink() if damage == "missing" else None
    if damage == "sums":
        (cache.place / SUMS).write_text("{")
    barriers: list[bool] = []
    cache.open(lambda: barriers.append(cache.place is not None and cache.place.exists()))
    said = capsys.readouterr().err
    assert barriers == [False] and said.count("\n") == 1 and "all of it was removed and is compiled again" in said
    assert ("sums.json cannot be read" if damage == "sums" else "1 of 1 files in") in said
    assert cache_dir() == str(cache.place / "inductor")


def test_a_cache_of_other_machines_is_said(tmp_path: Path) -> None:
    cache = compiled(tmp_path)
    assert cache.place is not None
    cache.place.rename(tmp_path / "torch-2-cuda-13-another-GPU")
    assert "only torch-2-cuda-13-another-GPU" in cache.check()
    assert cache.use() == "" and cache.check() == ""  # there is a part for this machine now


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = CompileCache(str(tmp_path / "file"), CPU)
    assert cache.check() == "" and "compilers keep to their own folders" in cache.use()
    assert not os.environ["TRITON_CACHE_DIR"]
    cache.keep()


def test_only_one_process_of_a_node_checks_and_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    cache = CompileCache(str(tmp_path), CPU)
    assert (cache.check(), cache.use()) == ("", "")
    cache.keep()
    assert cache.place is not None and os.listdir(cache.place) == []


def test_without_a_folder_nothing_is_done() -> None:
    cache = CompileCache(None, CPU)
    cache.open(lambda: None)
    cache.keep()
    assert not os.environ["TRITON_CACHE_DIR"]


def test_a_start_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.5, 4.5, 5.0, 6.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr(phases, "_marks", [("", 0.0)])
    phases.ended("model")
    phases.ended("first step")
    assert phases.told() == "start        model 1.0 s, first step 1.5 s; 2.5 s in all"
    phases.ended("model")
    assert phases.told() == "start        model 0.5 s; 0.5 s in all"
