"""Room set aside on a disk changes neither what a file holds, nor what a failure says."""

import errno
import os

import pytest

from lit_gpt.utils.files import reserve


def refused(handle, place, size):
    raise OSError(errno.ENOSPC, "no room")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("major", [8, 0])
def test_a_file_holds_what_was_written(tmp_path, monkeypatch, fails, major):
    """major: of the device that the file is said to lie on; 0 for NFS, FUSE, Btrfs and others that are on none."""
    asked, real = [], os.posix_fallocate
    ask = refused if fails else real
    monkeypatch.setattr(os, "posix_fallocate", lambda handle, *what: (asked.append(what), ask(handle, *what)))
    monkeypatch.setattr(os, "major", lambda device: major)
    with open(tmp_path / "file", "wb") as file:
        for piece in (b"head", b"x" * 100_000, b"tail"):
            reserve(file, len(piece))
            file.write(piece)
    assert (tmp_path / "file").read_bytes() == b"head" + b"x" * 100_000 + b"tail"
    assert asked == [(0, 4), (4, 100_000), (100_004, 4)] * bool(major)
