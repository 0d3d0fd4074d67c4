"""Where checkpoints lie, which of them count, in which order, and what their meta.json says.

    <run>/checkpoints/step-000100/      tensors in DCP files, .metadata, meta.json, SHA256SUMS, COMPLETE
    <run>/checkpoints/.tmp-step-000100  being written, or left by a run that was killed

Publishing is one rename, after COMPLETE was written as the last file. COMPLETE numbers the
checkpoints of a folder in the order in which they were published (no clock is asked), so the
newest is right also after a run went back to an older step. It also holds a digest of that
number and of SHA256SUMS, which has the digest of every other file.

Only names that are exactly as written here are ours. Copies, links and whatever else a person
puts beside them stay untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular

CHECKPOINT_VERSION = 1  # raise it when an older program would misread what is written
COMPLETE, META, SUMS, INDEX = "COMPLETE", "meta.json", "SHA256SUMS", ".metadata"  # INDEX is DCP's name
TMP, OLD = ".tmp-", ".tmp-old-"
NEW = ".new"  # of a step that was saved again, until the one before it is out of the way
STEP = re.compile(r"step-(\d{6,})(\.new)?")
LEFTOVER = re.compile(rf"\.tmp-(old-)?{STEP.pattern}")
# The second word is missing in COMPLETE of early runs, whose number is the time in ns.
SEAL = re.compile(r"(\d{1,20})(?: ([0-9a-f]{64}))?\n?", re.ASCII)
COUNTS = ("step", "tokens")  # of meta.json, whole numbers
SMALL = 1 << 28  # bytes; SHA256SUMS has 90 for each file, meta.json a few kB for each layer
REMOVERS = 4  # threads that delete files, which waits for the disk: four files together took 0.7 of the time
T = TypeVar("T")


class Where(Protocol):
    """The part of parallel.Runtime that checkpoints need."""

    @property
    def is_main(self) -> bool: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def barrier(self) -> None: ...


def everyones(value: T, world_size: int, group: dist.ProcessGroup | None = None) -> list[T]:
    """`value` of every rank, by rank. Collective, on the host."""
    if world_size == 1:
        return [value]
    values: list[T | None] = [None] * world_size
    dist.all_gather_object(values, value, group=group)
    return cast(list[T], values)


def say(text: str) -> None:
    """Print one line on stderr, without a buffer that a killed process would lose."""
    print(text, file=sys.stderr, flush=True)


def step_folder(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of one step under `folder` = <run>/checkpoints."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step in the name of a step folder."""
    return int(path.name.removesuffix(NEW).removeprefix("step-"))


def step_folders(folder: Path) -> list[Path]:
    """Folders, and links to folders, whose names we give to published checkpoints; in no order."""
    return [path for path in _inside(folder) if STEP.fullmatch(path.name) and path.is_dir()]


def list_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints under `folder` = <run>/checkpoints, oldest first. Their contents are not checked."""
    numbers = {path: published(path) for path in step_folders(folder)}
    return sorted((p for p, n in numbers.items() if n is not None), key=lambda p: (numbers[p], step_of(p)))


def is_complete(path: Path) -> bool:
    """Whether a folder has a file COMPLETE, whatever it says; `published` reads it."""
    return (path / COMPLETE).is_file()


def seal(number: int, sums: str) -> str:
    """The contents of COMPLETE. sums: those of SHA256SUMS."""
    digest = hashlib.sha256(f"{number}\n{sums}".encode()).hexdigest()
    return f"{number} {digest}\n"


def small_text(path: Path) -> str:
    """The contents of one of our small files. Raises UserError for pipes, devices, and files that are none of ours."""
    if (size := regular(path).stat().st_size) > SMALL:
        raise UserError(f"{path} has {size:,} bytes, more than any that this program wrote. Remove it.")
    return path.read_text()


def published(path: Path) -> int | None:
    """The place of a checkpoint in the order of publishing; None when it has none, or a damaged one."""
    try:
        found = SEAL.fullmatch(small_text(path / COMPLETE))
        if found is None:
            return None
        number = int(found[1])
        return number if not found[2] or found[0] == seal(number, small_text(path / SUMS)) else None
    except (UserError, OSError, UnicodeDecodeError):
        return None


def next_number(folder: Path) -> int:
    """The number of the checkpoint to be published next: one more than all, even where the highest is a time in ns."""
    return 1 + max((published(path) or 0 for path in step_folders(folder)), default=0)


def take_place(tmp: Path, final: Path) -> None:
    """Publish what is in `tmp`; if the same step is there already (a run went back), replace it.

    At every moment the old one or the new one has a name that counts. Raises FileExistsError for what is neither
    a folder nor a link, so nothing of ours.
    """
    if final.exists() and not final.is_dir():
        raise FileExistsError(f"{final} is in the way")
    if not os.path.lexists(final):
        os.replace(tmp, final)
        return
    new = final.with_name(final.name + NEW)
    os.replace(tmp, new)
    settle(new)


def settle(new: Path) -> None:
    """Give a step that was saved again (`<name>.new`) its final name.

    Where the old folder of that name cannot be moved away, the new one stays as it is, which counts as well.
    """
    final = new.with_name(new.name.removesuffix(NEW))
    if not os.path.lexists(final) or discard(final):
        os.replace(new, final)


def tidy(folder: Path) -> None:
    """Delete what killed runs were writing or deleting. Only one process of the run may call this."""
    for path in _inside(folder):
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            _remove(path)
        elif STEP.fullmatch(path.name) and path.name.endswith(NEW):
            settle(path)


def discard(path: Path) -> bool:
    """Delete a checkpoint; returns whether its name is free now.

    It is renamed first, so that one that is half deleted never counts; what a killed run left does not count anyway. Of
    a link only the link is removed. A failure is a warning.
    """
    try:
        if path.is_symlink():
            path.unlink()
            return True
        doomed = path if LEFTOVER.fullmatch(path.name) else path.with_name(OLD + path.name)
        os.replace(path, doomed)
    except OSError as error:
        say(f"warning: the old checkpoint {path} could not be removed ({error}); it stays.")
        return False
    _remove(doomed)
    return True


def _remove(path: Path) -> None:
    try:
        with ThreadPoolExecutor(REMOVERS) as pool:
            list(pool.map(os.unlink, [item for item in os.scandir(path) if not item.is_dir(follow_symlinks=False)]))
        shutil.rmtree(path)
    except OSError as error:
        say(f"warning: {path} could not be removed ({error}); it is no longer needed.")


def _inside(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of one checkpoint. Raises UserError when it is damaged or this version cannot read it."""
    if not is_complete(path):
        raise UserError(f"{path} is no complete checkpoint: it has no {COMPLETE} file. Give a step-* folder.")
    try:
        meta = json.loads(small_text(path / META))
    except (UserError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path / META} is damaged or missing ({error}); use another step of this run.") from error
    check_version(meta, path)
    if missing := [name for name in COUNTS if name not in meta]:
        raise UserError(f"{path / META} does not say {' and '.join(missing)}; use another step of this run.")
    return meta


def identity_of(path: Path) -> str:
    """A SHA-256 that tells a checkpoint from all others but its copies: of the sums of its files."""
    return hashlib.sha256(small_text(path / (SUMS if (path / SUMS).is_file() else META)).encode()).hexdigest()


def check_version(meta: Any, path: Path) -> dict[str, Any]:
    """`meta` itself. Raises UserError for another version's checkpoint, and for counts that are none."""
    if not isinstance(meta, dict):
        raise UserError(f"{path} has a {META} that is no table of names and values; use another checkpoint.")
    if meta.get("version") != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has checkpoint version {meta.get('version')}; this program reads version {CHECKPOINT_VERSION}. "
            "Load it with the release that wrote it."
        )
    for name in COUNTS:  # which imported weights do not have
        if name in meta and not (type(meta[name]) is int and 0 <= meta[name] < 1 << 63):
            raise UserError(f"{path} says {name} {str(meta[name])[:40]}, which is no count; use another checkpoint.")
    return meta
