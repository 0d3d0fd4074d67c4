"""Whether a checkpoint holds what was written: a SHA-256 of every file, checked before anything is loaded.

ArchScale's checkpoints have no sums (departure D88).
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_gpt.checkpoint.layout import (
    COMPLETE,
    INDEX,
    META,
    SUMS,
    Where,
    everyones,
    is_complete,
    published,
    read_meta,
    small_text,
)
from lit_gpt.checkpoint.untrusted import data_files, read_index
from lit_gpt.checkpoint.writing import THREADS
from lit_gpt.errors import UserError
from lit_gpt.utils.files import digest

LINE = re.compile(r"([0-9a-f]{64})  (\S+)")  # as sha256sum writes and reads it: `sha256sum -c SHA256SUMS`
# SHA-256 because every machine has a command for it. zlib.crc32 is faster (3.4 against 1.3 GB/s
# for one core of a Xeon with SHA extensions), but a disk is hardly faster than either, ranks share
# the files, and a save computes it while the same bytes are being written.


def sums_text(sums: dict[str, str]) -> str:
    """File name -> SHA-256, as the contents of SHA256SUMS."""
    return "".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items()))


def damage(path: Path, runtime: Where | None = None, *, summed: bool = True) -> str | None:
    """What is wrong with the contents of a step folder, or None. Collective: the ranks share the files.

    Early checkpoints have no sums; of those the lengths are checked, and so they are of all without `summed`, which
    takes a moment at any size.
    """
    rank, ranks = (runtime.rank, runtime.world_size) if runtime else (0, 1)
    try:
        mine = _damage(path, rank, ranks, summed)
    except (UserError, OSError) as error:
        mine = str(error)
    return next((found for found in everyones(mine, ranks) if found), None)


def _damage(path: Path, rank: int, ranks: int, summed: bool) -> str | None:
    if not is_complete(path):
        return f"it has no file {COMPLETE}"
    read_meta(path)
    if published(path) is None:
        return f"its file {COMPLETE} is cut or changed, or {SUMS} is"
    sums = {}
    if len(small_text(path / COMPLETE).split()) == 2:
        sums = {name: value for value, name in LINE.findall(small_text(path / SUMS))}
    lengths = {META: 1, INDEX: 1}
    if not sums or digest(path / INDEX) == sums.get(INDEX):  # else it is damaged, which is said below
        lengths |= data_files(read_index(path))
    mine = sorted(lengths)[rank::ranks]
    for name in mine:
        if not (path / name).is_file():
            return f"its file {name} is missing"
        if (path / name).stat().st_size < lengths[name]:
            return f"its file {name} is cut: {(path / name).stat().st_size:,} of {lengths[name]:,} bytes"
    if sums and summed:
        with ThreadPoolExecutor(THREADS) as pool:
            for name, found in zip(mine, pool.map(lambda name: digest(path / name), mine)):
                if found != sums.get(name):
                    return f"its file {name} is not what was written: {SUMS} has another sum"
    return None


def require_whole(path: Path, runtime: Where | None = None) -> None:
    """Raises UserError unless the contents of a step folder are what was written. Collective, see damage."""
    wrong = damage(path, runtime)
    if wrong:
        raise UserError(f"The checkpoint {path} is damaged: {wrong}. Use another step of this run.")
