"""Files that are never seen half-written, files that can be read at all, and their sums."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from lit_gpt.errors import NotWritten, UserError, did_you_mean

BLOCK = 1 << 20  # bytes that are read at once: enough that Python's overhead does not count
# What only writing fails with: no room on the disk or in a quota, a disk that is read-only, a limit of the file's size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
TICK = 2 * 10**9  # nanoseconds: of the coarsest clock, that of FAT; those of Linux count in some milliseconds
_stamps = itertools.count()
# Of Linux's C library: int fallocate(int handle, int mode, off_t place, off_t size).
_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
KEEP_SIZE = 1  # a mode of it, FALLOC_FL_KEEP_SIZE
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")  # see replacing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes the place of `path` in one step when the block ends.

    Neither a reader nor a crash finds half a file, and a block that raises leaves `path` as it was. The file has
    the mode that a plain open() gives (safetensors, for one, makes files of mode 0600). The temporary name holds
    the process id: several processes may write the same file. Raises UserError for "-", which means the terminal
    elsewhere and would be a file that few commands can name.
    """
    if path.name == "-":
        raise UserError("'-' is no name for a file here. Give one, such as table.json.")
    temporary = temporary_name(path)
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


def temporary_name(path: Path) -> Path:
    """Where this process makes the file or folder that is to have the name `path`; see TEMPORARY."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises UserError when it holds anything else."""
    try:
        value = json.loads(regular(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). Remove it, or write it again.") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{path} holds a JSON {kind} where an object was expected. Remove it, or write it again.")
    return value


def read_object_if_any(path: Path) -> dict[str, Any]:
    """The same, and {} where there is no such file."""
    return read_object(path) if path.is_file() else {}


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(path and line, value) of each line of a file that is not blank. Raises UserError, with the line, for others."""
    try:
        lines = regular(path, "Give a file of JSON lines.").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Write it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}). Give a file of JSON lines.") from error
    for where, line in ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()):
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: this is no JSON ({error}). Write the line again.") from error


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Delete what killed processes of this machine left beside files and folders of these names (or patterns).

    Those of a process that runs stay, and so does whatever has another name.
    """
    for path in folder.iterdir():
        left = TEMPORARY.fullmatch(path.name)
        if left and any(fnmatchcase(left["name"], name) for name in names) and not _another_runs(int(left["pid"])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _another_runs(pid: int) -> bool:
    """Whether another process has this id. Ours is what a killed one had too where a container counts from 1."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid != os.getpid()


@contextmanager
def told(what: Path | str) -> Iterator[None]:
    """Raise NotWritten where the block fails to write `what`: disk full, read-only, gone."""
    try:
        yield
    except OSError as error:
        raise not_written(error, what) from error


def kind_of(error: OSError) -> type[UserError]:
    """NotWritten where only writing fails like that; else UserError, as a path is then one that cannot be used."""
    return NotWritten if error.errno in NO_ROOM else UserError


def not_written(error: OSError, what: Path | str | None = None) -> NotWritten:
    """The error as a sentence. what: could not be written; default: the file that the error names."""
    what = what or error.filename2 or error.filename or "A file, or the output,"
    return NotWritten(f"{what} could not be written ({error.strerror or error}). Make room or permit it.")


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut.

    Some file systems cannot do it for folders, and keep names in their own way: that is no failure (as in PostgreSQL's
    fsync_fname_ext).
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def reserve(file: IO[bytes], size: int) -> None:
    """Have a local disk set aside the blocks of the `size` bytes that are written next; the file does not grow.

    ext4 then writes 64 MB in two thirds of the time. posix_fallocate would let the file grow: where the power fails
    before the bytes are on the disk, it would end in zeros, and not be shorter than its header or the journal says.
    Only where the file system lies on a block device of its own, such as ext4 and XFS: on Btrfs the file would not be
    compressed. Where it fails, the writing will say why.
    """
    if _fallocate is not None and os.major(os.fstat(file.fileno()).st_dev):
        _fallocate(file.fileno(), KEEP_SIZE, ctypes.c_int64(file.tell()), ctypes.c_int64(size))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by this text in UTF-8, in one step; see replacing."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by these bytes, in one step; see replacing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def near(path: Path, holds: str = "") -> str:
    """A suggestion such as " Did you mean 'laptop.yaml'?" for a path that is not there, or "".

    holds: a file that the wanted folder has; where the path is a folder, those in it that have one are suggested.
    """
    try:
        if not os.path.lexists(path):
            return did_you_mean(path.name, os.listdir(path.parent), n=1)
        below = sorted(repr(str(found.parent)) for found in path.glob(f"*/{holds}"))[:3] if holds else []
    except (OSError, ValueError):
        return ""
    return f" Did you mean {' or '.join(below)}?" if below else ""


def regular(path: Path, wanted: str = "") -> Path:
    """`path` itself. Raises UserError for a broken link, and for folders, pipes and devices: reading them may hang.

    wanted: the sentence on what to give, where a person named the path; else the name is in the way.
    """
    try:
        mode = path.stat().st_mode
    except OSError as e:
        link = "is a link to nothing that is there" if path.is_symlink() else f"cannot be read: {e.strerror}"
        raise UserError(f"{path} {link}.{near(path)} {wanted or 'Put the file there, or remove the name.'}") from e
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {what} and not a file. {wanted or 'Remove or rename it.'}")
    return path


def stamp(path: Path) -> tuple[int, ...]:
    """While it is the same, the content of a file is, too: its inode, bytes, and when it was changed last.

    A file that was changed within the last TICK may be changed again without a new time (git calls that racy), so no
    two stamps of it are alike.
    """
    now = path.stat()
    same = now.st_ino, now.st_size, now.st_mtime_ns
    return same if time.time_ns() - now.st_mtime_ns > TICK else (*same, next(_stamps))


def digest(path: Path) -> str:
    """The SHA-256 of a file, computed once for as long as nobody touches the file."""
    return _digest(path, *stamp(regular(path)))


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()


@contextmanager
def understood(what: Path | str | None) -> Iterator[None]:
    """Raise UserError where the block takes apart a stored description that is not of the shape we write.

    A file with good sums may still be another program's, or hostile.
    """
    try:
        yield
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{what} describes its run in a way that this version does not know ({type(error).__name__}: {error}). "
            "Use another step or run."
        ) from error
