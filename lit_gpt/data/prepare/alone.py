"""One process prepares a folder at a time: `srun` and `torchrun` start a command many times."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.errors import UserError


@contextmanager
def alone(folder: Path, parts: Path) -> Iterator[None]:
    """Hold a lock in `parts`, where unfinished work lies; the system gives it back when the process ends.

    Raises UserError where another process holds it.
    """
    with open(parts / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(
                f"{str(folder)!r} is being prepared by another process. Wait for its end, or choose another --output; "
                "start the command once, and not on every process of srun or torchrun."
            ) from e
        except OSError:  # a file system that keeps no locks
            pass
        yield
