"""Room set aside on a disk changes neither what a file holds, nor what a failure says."""

import errno
import os
from types import SimpleNamespace

import pytest

from lit_gpt.utils.files import reserve


def refused(handle, place, size):
    raise OSError(errno.ENOSPC, "no room")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("device", [None, os.makedev(8, 1), os.makedev(0, 42)])
def test_a_file_holds_what_was_written(tmp_path, monkeypatch, fails, device):
    """device: where the file is said to lie; of major number 0 are NFS, FUSE, Btrfs and others without a device."""
    asked, real = [], os.posix_fallocate
    monkeypatch.setattr(
        os, "posix_fallocate", lambda *what: (asked.append(what[1:]), (refused if fails else real)(*what))
    )
    if device is not None:
        monkeypatch.setattr(os, "fstat", lambda handle: SimpleNamespace(st_dev=device))
    with open(tmp_path / "file", "wb") as file:
        for piece in (b"head", b"x" * 100_000, b"tail"):
            reserve(file, len(piece))
            file.write(piece)
    assert (tmp_path / "file").read_bytes() == b"head" + b"x" * 100_000 + b"tail"
    if device is not None:
        assert asked == [(0, 4), (4, 100_000), (100_004, 4)] * bool(os.major(device))
