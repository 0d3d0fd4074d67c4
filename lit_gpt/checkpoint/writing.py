"""Files that are on the disk when they are said to be, and whose sums are known without reading them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.serialization import set_crc32_options

from lit_gpt.utils.files import reserve

# One core computes the SHA-256 of 1.3 GB/s (contents.py), less than a good disk writes. So the tensors of a rank are in
# up to four files, each written, and later checked, by a thread of its own.
THREADS = 4
# A file costs a sync of its own, so there is one for every 64 MiB, and a small checkpoint stays in one. Two cores saved
# 373 MB in four files 1.2 times as fast as in one, in paired runs.
BYTES_PER_THREAD = 1 << 26


class Writer(dcp.FileSystemWriter):
    """DCP's writer of one folder; `files` has the sums of what it wrote. size: bytes that this rank will write."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, sync_files=True, thread_count=min(max(size // BYTES_PER_THREAD, 1), THREADS))
        self.fs = self.files = SummedFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """DCP's, which does not look at what happened to its threads: raises the first failure of a file."""
        written = super().write_data(plan, planner)
        if self.files.failure or len(written.value()) < len(plan.items):
            raise self.files.failure or OSError(f"not every file of {self.path} was written")
        return written


class SummedFiles(FileSystem):
    """DCP's files; `sums` has the SHA-256 of each one that was written, by name; `failure` the first that was not."""

    def __init__(self) -> None:
        self.sums: dict[str, str] = {}
        self.failure: Exception | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        """A file, opened as open() does. What fails while it is written is kept in `failure` and not raised."""
        summed = None
        set_crc32_options(False)  # of each tensor, beside the SHA-256: a third of torch.save's time; of this thread
        try:
            with super().create_stream(path, mode) as file, ThreadPoolExecutor(1) as pool:
                yield (summed := _Summed(file, pool))
            self.sums[Path(path).name] = summed.sha.hexdigest()
        except Exception as error:  # torch.save tells of its own confusion after a failure of the file
            if summed is None:  # it could not be opened
                raise
            self.failure = self.failure or summed.failure or error
        finally:
            set_crc32_options(True)


class _Summed:
    """A file that is written from its beginning to its end. Large pieces are summed while they are written."""

    LARGE = 1 << 20  # bytes; below, handing over to another thread (some 50 us) costs more than it saves

    def __init__(self, file: Any, pool: Executor) -> None:
        self.file, self.pool, self.sha = file, pool, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        large = len(data) >= self.LARGE
        summing = self.pool.submit(self.sha.update, data) if large else self.sha.update(data)
        try:
            if large:
                reserve(self.file, len(data))
            written = self.file.write(data)
            if large:
                begin_sync(self.file, len(data))
            return written
        except OSError as error:
            self.failure = error
            raise
        finally:
            if summing:
                summing.result()  # the memory of `data` is valid until this returns

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def begin_sync(file: Any, size: int) -> None:
    """Have the disk begin with the last `size` bytes of a file, while others are summed; fsync waits for the rest.

    Linux does so when it is told that they are not needed (mm/fadvise.c), and what is not on the disk stays in memory.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), file.tell() - size, size, os.POSIX_FADV_DONTNEED)


def write_text(path: Path, text: str) -> None:
    """A new file, on the disk. It may be half-written after a crash: its folder is published later."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
