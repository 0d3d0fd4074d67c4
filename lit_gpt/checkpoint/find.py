"""The checkpoint to load: the newest one whose contents are whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lit_gpt.checkpoint.contents import damage
from lit_gpt.checkpoint.layout import COMPLETE, Where, everyones, is_complete, list_checkpoints, say, step_folders
from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object_if_any

SUMMARY = "summary.json"  # of a run folder, see metrics/summary.py


def find_checkpoint(folder: Path, resume: bool | str, runtime: Where | None = None) -> Path | None:
    """The checkpoint that `--resume` names: the newest whose files are what was written; says what was left out.

    folder: the run folder. resume: False for none, "auto" for the newest complete one or None,
    True for the newest or an error, else a path: a run, its checkpoints folder, or one step.
    Collective: the main rank looks, and all ranks share the files to be checked.
    Raises UserError when what was asked for does not exist, is incomplete, or is damaged.
    """
    if resume is False:
        return None
    place = folder if resume in (True, "auto") else Path(resume)
    found = everyones(all_checkpoints(place), runtime.world_size if runtime else 1)[0]
    if any(map(is_complete, found)):
        return _newest_whole(found, place, runtime)
    if found and (runtime is None or runtime.is_main):
        say(f"warning: {', '.join(map(str, found))} left out: no {COMPLETE} file, so it was never whole.")
    if resume == "auto":
        return None
    if resume is True:
        raise UserError(
            f"--resume true: no complete checkpoint in {folder}. Use --resume auto to start when there is none."
            f"{none_left(folder)}"
        )
    raise UserError(
        f"There is no complete checkpoint at {place}. Give a run folder, a step-* folder with a {COMPLETE} file, "
        f"or an exported .pth or .safetensors file where one is allowed.{none_left(place)}"
    )


def none_left(path: Path) -> str:
    """A sentence, after a space, on the run that `path` is or was a part of, if it has finished and left nothing."""
    with suppress(UserError):  # of a damaged summary, which says nothing
        for run in (path, path.parent, path.parent.parent):  # a run, its checkpoints folder, a step
            if read_object_if_any(run / SUMMARY).get("finished") and not step_folders(run / "checkpoints"):
                return (
                    f" The run {run} has finished and left no checkpoint (--keep_last 0, or they were removed); train "
                    "it again in another folder with --keep_last 1 to have one."
                )
    return ""


def newest_published(path: Path) -> Path | None:
    """`path` if it is a checkpoint, else the newest of this run or checkpoints folder; its contents are not checked."""
    if is_complete(path):
        return path
    return next(reversed(list_checkpoints(path / "checkpoints") or list_checkpoints(path)), None)


def all_checkpoints(path: Path) -> list[Path]:
    """`path` if it is a checkpoint, else those of this run or checkpoints folder, the one to prefer first.

    Those without a place in the order, which are damaged, come before the others, to be told of.
    """
    if is_complete(path):
        return [path]
    for folder in (path / "checkpoints", path):
        ordered = list_checkpoints(folder)
        if unordered := sorted(set(step_folders(folder)) - set(ordered)):
            return [*reversed(unordered), *reversed(ordered)]
        if ordered:
            return ordered[::-1]
    return []


def _newest_whole(found: list[Path], place: Path, runtime: Where | None) -> Path:
    left_out = []
    for path in found:
        wrong = damage(path, runtime)
        if wrong is None:
            if left_out and (runtime is None or runtime.is_main):
                say(f"warning: {path} is used; left out, although newer: {'; '.join(left_out)}.")
            return path
        left_out.append(f"{path.name}: {wrong.rstrip('.')}")
    raise UserError(
        f"No checkpoint at {place} is whole ({'; '.join(left_out)}). Use another step or run, or restore the files."
    )
