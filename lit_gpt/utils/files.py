"""Files that are never seen half-written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes the place of `path` in one step when the block ends.

    Neither a reader nor a crash finds half a file, and a block that raises leaves `path` as it was. The file has
    the mode that a plain open() gives (safetensors, for one, makes files of mode 0600). The temporary name holds
    the process id: several processes may write the same file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)  # made by the umask, or by the folder's default ACL
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """write_bytes in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step; see replacing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
