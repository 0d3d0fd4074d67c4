"""What finished runs of a study left although --keep_last 0 keeps no checkpoint, as their end was cut short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lit_gpt.lab.queue import done_before
from lit_gpt.lab.rows import Row
from lit_gpt.lab.run_files import FINISHED
from lit_gpt.train.folder_names import CONFIG
from lit_gpt.train.release import release_finished


def release_rows(rows: Sequence[Row], output: Path, say: Callable[[Row, str], None]) -> None:
    """Delete it, and say so, of all rows that have finished before."""
    for row in rows:
        if done_before(output / row.name) == FINISHED:
            folders = [path.parent for path in (output / row.name).glob(f"*/{CONFIG}")]
            if deleted := [name for folder in folders for name in release_finished(folder)]:
                say(row, f"deleted {', '.join(deleted)}, which --keep_last 0 does not keep")
