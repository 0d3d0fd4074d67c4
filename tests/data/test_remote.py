"""Remote roots, with fsspec's in-memory file system as the remote side."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lit_gpt.data import open_corpus, remote
from lit_gpt.data.discover import describe_sources
from lit_gpt.data.remote import NoData, fetch
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


def test_only_data_is_copied(bucket, tmp_path):
    """Whatever was under the root was copied before anything looked whether it was data."""
    bucket.pipe("/bucket/set/notes.txt", b"words")
    bucket.pipe("/bucket/set/model.safetensors", bytes(1000))
    local = fetch("memory://bucket/set", tmp_path)
    assert sorted(p.name for p in local.rglob("*.*")) == ["train_0.bin", "val.bin"]
    bucket.pipe("/bucket/none/passwd", bytes(1000))
    bucket.pipe("/bucket/none/disk.img", bytes(1000))
    with pytest.raises(
        NoData, match=r"No data under .*none of its 2 files \(disk.img, passwd, ...\) is a .bin file or text"
    ):
        fetch("memory://bucket/none", tmp_path / "b")
    bucket.pipe("/bucket/texts/a.txt", b"words " * 100)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoData, match="holds 600 bytes of text; up to 500"):
        patch.setattr(remote, "LIMIT_BYTES", 500)
        fetch("memory://bucket/texts", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_is_known_of_remote_data_needs_no_shards(bucket, tmp_path, monkeypatch):
    """The model for a remote root had the family's vocabulary, whatever its meta.json said."""
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path))
    bucket.pipe("/bucket/set/meta.json", b'{"vocab_size": 397}')
    ((name, info),) = describe_sources("memory://bucket/set", "train")
    assert (name, info.vocab_size) == ("memory://bucket/set", 397)
    assert not list(tmp_path.rglob("*.bin"))
    bucket.pipe("/bucket/texts/a.txt", b"words " * 100)
    assert [i.vocab_size for _, i in describe_sources("memory://bucket/texts", "train")] == [257]


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no files under"):
        fetch("memory://nothing/here", tmp_path)
    with pytest.raises(UserError, match="Cannot open 'nope://x'"):
        fetch("nope://x", tmp_path)
    with pytest.raises(UserError, match=r"Cannot (open|list) 'ftp://localhost:1/x'"):  # its package connects at once
        fetch("ftp://localhost:1/x", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"scalelab\[cloud\]"):
        fetch("s3://bucket/set", tmp_path)
