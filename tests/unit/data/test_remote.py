"""Remote roots, with fsspec's in-memory file system as the remote side."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lit_gpt.data import open_corpus
from lit_gpt.data.remote import fetch
from lit_gpt.errors import UserError


@pytest.fixture
def bucket():
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/set/train_0.bin", np.arange(100, dtype="<u2").tobytes())
    fs.pipe("/bucket/set/deep/val.bin", np.arange(50, dtype="<u2").tobytes())
    yield fs
    fs.rm("/bucket", recursive=True)


def test_files_are_copied_once_and_again_when_their_size_changes(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path))
    assert open_corpus("memory://bucket/set", "train", 9, 0).num_tokens == 100
    local = fetch("memory://bucket/set/")
    assert sorted(p.relative_to(local).as_posix() for p in local.rglob("*.*")) == ["deep/val.bin", "train_0.bin"]
    before = (local / "train_0.bin").stat().st_mtime_ns
    bucket.pipe("/bucket/set/deep/val.bin", bytes(10))
    fetch("memory://bucket/set")
    assert (local / "train_0.bin").stat().st_mtime_ns == before
    assert (local / "deep/val.bin").read_bytes() == bytes(10)


def test_a_broken_download_leaves_nothing(bucket, tmp_path, monkeypatch):
    def broken(remote, path, **_):
        with open(path, "wb") as f:
            f.write(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(type(bucket), "get_file", lambda self, *a, **k: broken(*a, **k))
    with pytest.raises(UserError, match="connection lost"):
        fetch("memory://bucket/set", tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no files under"):
        fetch("memory://nothing/here", tmp_path)
    with pytest.raises(UserError, match="Cannot open 'nope://x'"):
        fetch("nope://x", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"scalelab\[cloud\]"):
        fetch("s3://bucket/set", tmp_path)
