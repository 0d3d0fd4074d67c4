"""Room set aside on a disk changes neither what a file holds, nor what a failure says."""

import os

import pytest

from lit_gpt.utils import files


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("major", [8, 0])
def test_a_file_holds_what_was_written(tmp_path, monkeypatch, fails, major):
    """major: of the device that the file is said to lie on; 0 for NFS, FUSE, Btrfs and others that are on none."""
    asked, real = [], files._fallocate
    if real is None:
        pytest.skip("Linux's")

    def ask(handle, mode, place, size):
        asked.append((place.value, size.value))
        return -1 if fails else real(handle, mode, place, size)

    monkeypatch.setattr(files, "_fallocate", ask)
    monkeypatch.setattr(os, "major", lambda device: major)
    with open(tmp_path / "file", "wb") as file:
        for piece in (b"head", b"x" * 100_000, b"tail"):
            files.reserve(file, len(piece))
            file.flush()
            assert os.fstat(file.fileno()).st_size == file.tell(), "a power cut would leave zeros"
            file.write(piece)
    assert (tmp_path / "file").read_bytes() == b"head" + b"x" * 100_000 + b"tail"
    assert asked == [(0, 4), (4, 100_000), (100_004, 4)] * bool(major)


@pytest.mark.skipif(files._fallocate is None, reason="Linux's")
def test_the_blocks_are_there(tmp_path):
    """They were not where the arguments of the call went wrong, which no other test would see."""
    if os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("nothing is set aside on this file system")
    with open(tmp_path / "file", "wb") as file:
        file.write(b"head")
        files.reserve(file, 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
