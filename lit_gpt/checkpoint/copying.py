"""Copy a checkpoint to another folder, published as a whole, as a save is."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from lit_gpt.checkpoint.contents import damage, require_whole
from lit_gpt.checkpoint.layout import COMPLETE, INDEX, META, SUMS, TMP, read_meta, step_folder
from lit_gpt.checkpoint.untrusted import data_files, read_index
from lit_gpt.errors import UserError
from lit_gpt.utils.files import kind_of, regular, sync


def copy_checkpoint(source: Path, folder: Path) -> Path:
    """Copy a step folder to `folder` = <run>/checkpoints, under the name of its step; returns the copy.

    Its sums are checked before, and those of the copy before that gets its name. The copy keeps its place in the order
    of publishing, so of several copies from one run the newest is still the newest. Only what belongs to the checkpoint
    is copied. Raises UserError for a checkpoint that is not whole, where its step is there already, and where the copy
    cannot be written; then nothing of it is left.
    """
    require_whole(source)
    final = step_folder(folder, read_meta(source)["step"])
    if os.path.lexists(final):
        raise UserError(f"{final} is there already, and is not replaced. Give another folder, or delete it first.")
    tmp, made = final.with_name(TMP + final.name), [p for p in (folder, *folder.parents) if not os.path.exists(p)]
    try:
        if tmp.is_dir() and not tmp.is_symlink():  # left by a copy that was killed
            shutil.rmtree(tmp)
        tmp.mkdir(parents=True)
        sums = [SUMS] if (source / SUMS).exists() else []  # which early checkpoints do not have
        for name in (META, INDEX, *data_files(read_index(source)), *sums, COMPLETE):
            _copy(source / name, tmp / name)
        sync(tmp)
        if wrong := damage(tmp):
            raise OSError(f"the copy is damaged: {wrong}")
        os.rename(tmp, final)
        sync(folder)
    except BaseException as error:
        shutil.rmtree(tmp, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # somebody else put something there meanwhile
                path.rmdir()
        if isinstance(error, OSError):
            why = error.strerror or error
            raise kind_of(error)(
                f"{source} could not be copied to {final} ({why}), and nothing of the copy is left. Make room, or give "
                "another folder."
            ) from error
        raise
    return final


def _copy(source: Path, target: Path) -> None:
    """One file, on the disk."""
    shutil.copyfile(regular(source), target)
    sync(target)
