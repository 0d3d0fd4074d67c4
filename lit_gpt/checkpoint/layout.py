"""Where checkpoints lie, which of them count, and what their meta.json says.

    <run>/checkpoints/step-000100/      tensors in DCP files, meta.json, COMPLETE
    <run>/checkpoints/.tmp-step-000100  being written, or left by a run that was killed

A folder counts only with its COMPLETE marker, which is written last and holds the time of
publishing: the newest checkpoint is the one published last, also after a run went back to an
older step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object

CHECKPOINT_VERSION = 1
COMPLETE, META = "COMPLETE", "meta.json"
TMP = ".tmp-"


class Where(Protocol):
    """The part of parallel.Runtime that checkpoints need."""

    @property
    def is_main(self) -> bool: ...
    @property
    def world_size(self) -> int: ...
    def barrier(self) -> None: ...


def step_folder(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of one step under `folder` = <run>/checkpoints."""
    return folder / f"step-{step:06d}"


def is_complete(path: Path) -> bool:
    return (path / COMPLETE).is_file()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints under `folder` = <run>/checkpoints, oldest first."""
    return sorted(filter(is_complete, folder.glob("step-*")), key=_published)


def _published(path: Path) -> int:
    """When a checkpoint was published. Raises UserError where its marker does not say."""
    try:
        return int((path / COMPLETE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path / COMPLETE} is damaged: it does not say when the checkpoint was published, so the newest cannot be "
            f"told. Give the folder of one step, or remove {path}."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs were writing. Only one process of the run may call this."""
    for path in folder.glob(f"{TMP}*"):
        shutil.rmtree(path)


def discard(path: Path) -> None:
    """Delete a checkpoint; renamed first, so that a half-deleted one never counts."""
    doomed = path.with_name(f"{TMP}old-{path.name}")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def find_checkpoint(folder: Path, resume: bool | str) -> Path | None:
    """The checkpoint that `--resume` names.

    folder: the run folder. resume: False for none, "auto" for the newest complete one or None,
    True for the newest or an error, else a path: a run, its checkpoints folder, or one step.
    Raises UserError when what was asked for does not exist or is incomplete.
    """
    if resume is False:
        return None
    if resume == "auto" and not _checkpoints_at(folder):
        return None
    if resume is True and not _checkpoints_at(folder):
        raise UserError(
            f"--resume true: no complete checkpoint in {folder}. Use --resume auto to start when there is none."
        )
    return newest_checkpoint(folder if resume in (True, "auto") else Path(resume))


def newest_checkpoint(path: Path) -> Path:
    """`path` if it is a checkpoint, else the newest of this run or checkpoints folder, else UserError."""
    found = _checkpoints_at(path)
    if found:
        return found[-1]
    raise UserError(
        f"There is no complete checkpoint at {path}. Give a run folder, a step-* folder with a {COMPLETE} file, "
        "or an exported .pth or .safetensors file where one is allowed."
    )


def _checkpoints_at(path: Path) -> list[Path]:
    return [path] if is_complete(path) else list_checkpoints(path / "checkpoints") or list_checkpoints(path)


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of one checkpoint. Raises UserError when this version cannot read it."""
    if not is_complete(path):
        raise UserError(f"{path} is no complete checkpoint: it has no {COMPLETE} file. Give a step-* folder.")
    return check_version(read_object(path / META), path)


def check_version(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """`meta` itself. Raises UserError for another version's checkpoint."""
    if meta.get("version") != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has checkpoint version {meta.get('version')}; this program reads version {CHECKPOINT_VERSION}. "
            "Load it with the release that wrote it."
        )
    return meta
