"""What lies in a folder of checkpoints: ours, what killed runs left, and what people put there."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.checkpoint import damage, list_checkpoints
from lit_gpt.checkpoint.layout import COMPLETE, LEFTOVER, STEP, say
from lit_gpt.checkpoint.retention import VALIDATION, loss_of, meta_of, why_kept
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.metrics.summary import METRICS_FILE, parse_rows
from lit_gpt.tools._run_differences import read_values
from lit_gpt.train.folder_names import CONFIG
from lit_gpt.train.lease import owner_of
from lit_gpt.utils.files import regular
from lit_gpt.utils.text import aligned

CHECKPOINTS = "checkpoints"  # of a run folder
TRAIN_LOSS = "metric/train_loss"
HEADER = ("name", "tokens", "val loss", "train loss", "size", "saved", "state", "kept because")
NONE = "-"


@dataclass(frozen=True)
class Place:
    """Where checkpoints lie.

    folder: that of the step folders. run: the run folder around it, None where there is none. step: the one
    checkpoint that was asked for, None for all.
    """

    folder: Path
    run: Path | None
    step: Path | None = None


def place_of(given: Path) -> Place:
    """What a person named: a run folder, its checkpoints folder, or one step folder or copy of one.

    Raises UserError for anything else.
    """
    path = Path(os.path.abspath(given))
    if (path / CHECKPOINTS).is_dir():
        return Place(path / CHECKPOINTS, path)
    if path.is_dir() and (STEP.fullmatch(path.name) or has_marker(path)):
        return Place(path.parent, _run_of(path.parent), path)
    if path.is_dir() and (path.name == CHECKPOINTS or any(STEP.fullmatch(name) for name in os.listdir(path))):
        return Place(path, _run_of(path))
    what = "holds no checkpoints" if path.is_dir() else "is no folder"
    raise UserError(f"{given} {what}. Give a run folder, its {CHECKPOINTS} folder, or one step-* folder.")


def _run_of(folder: Path) -> Path | None:
    return folder.parent if folder.name == CHECKPOINTS else None


def is_ours(path: Path) -> bool:
    """Whether this is a checkpoint of the run by its name, or a link that stands for one."""
    return bool(STEP.fullmatch(path.name)) and path.is_dir()


def is_left(path: Path) -> bool:
    """Whether this is being written or deleted, or was when a run was killed."""
    return bool(LEFTOVER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def has_marker(path: Path) -> bool:
    """Whether a folder looks like a checkpoint, whatever its name: a person's copy."""
    return os.path.isfile(path / COMPLETE)  # not Path.is_file, which raises where permission is missing


def table(place: Place) -> str:
    """A row for every entry of the folder, the oldest checkpoint first, or for the one asked for; and totals."""
    ordered, run = list_checkpoints(place.folder), place.run
    kept = why_kept(ordered, **_options(run)) if run else {}
    losses, owner = _train_losses(run), owner_of(run) if run else ""
    others = sorted((place.folder / name for name in os.listdir(place.folder)), key=lambda p: (not is_ours(p), p))
    rows: list[tuple[str, ...]] = [HEADER]
    sizes: dict[Path, int] = {}
    for path in [place.step] if place.step else [*ordered, *(path for path in others if path not in ordered)]:
        with suppress(FileNotFoundError):  # a run deleted it meanwhile
            size = size_of(path)
            rows.append(_row(path, size, kept.get(path), losses, owner))
            sizes[path] = size or 0
    title = f"{place.folder}{f', in use by {owner}' if owner else ''}"
    shown = [tuple(map(printable, row)) for row in rows]
    return "\n".join([printable(title), "", aligned(shown, right=(1, 2, 3, 4)), "", _total(sizes)])


def _row(path: Path, size: int | None, kept: list[str] | None, losses: dict[int, float], owner: str) -> tuple[str, ...]:
    meta = (meta_of(path) if has_marker(path) else None) or {}
    measured, trained = loss_of(meta.get(VALIDATION)), losses.get(meta.get("step", -1), math.inf)
    state, wrong = _state(path)
    return (
        path.name,
        f"{meta['tokens']:,}" if meta else NONE,
        *(f"{loss:.4f}" if math.isfinite(loss) else NONE for loss in (measured, trained)),
        NONE if path.is_symlink() else "?" if size is None else human(size),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(path.lstat().st_mtime)),
        state,
        _why(path, kept, owner) + wrong,
    )


def _state(path: Path) -> tuple[str, str]:
    """A word, and what is wrong as the end of a sentence. The sums are not checked, so it takes a moment."""
    if is_left(path):
        return "unfinished", ""
    if not is_ours(path) and not has_marker(path):
        return "no checkpoint", ""
    wrong = damage(path, summed=False)
    return ("damaged", f"; damaged: {wrong}") if wrong else ("whole", "")


def _why(path: Path, kept: list[str] | None, owner: str) -> str:
    if kept is not None:
        return "; ".join(kept) or "nothing: the next save deletes it"
    if is_left(path):
        return f"nothing, unless {owner} is writing it" if owner else "nothing: the next start of the run deletes it"
    return "no run counts or deletes it" if is_ours(path) else "a person's own: no run touches it"


def _total(sizes: dict[Path, int]) -> str:
    """Of checkpoints and of all else."""
    ours = [size for path, size in sizes.items() if is_ours(path)]
    others = [size for path, size in sizes.items() if not is_ours(path)]
    text = f"total: {len(ours)} checkpoint{'s' if len(ours) != 1 else ''}, {human(sum(ours))}"
    text += f"; {len(others)} other{'s' if len(others) != 1 else ''}, {human(sum(others))}" if others else ""
    return f"{text}. Whole means that every file has its length; verify checks the sums too."


def size_of(path: Path) -> int | None:
    """Bytes of the files below a path; of a link 0, since they lie elsewhere. None where they cannot be looked at."""
    if path.is_symlink():
        return 0
    problems: list[OSError] = []
    try:
        sizes = [os.lstat(path).st_size] if not path.is_dir() else [0]
        for root, _, names in os.walk(path, onerror=problems.append):
            sizes += [os.lstat(os.path.join(root, name)).st_size for name in names]
    except FileNotFoundError:  # a run deletes it meanwhile
        return 0
    except OSError:
        return None
    return None if problems else sum(sizes)


def human(size: int) -> str:
    """Bytes in words, such as 1.5 GiB."""
    power = min(max(size.bit_length() - 1, 0) // 10, 5)
    return f"{size / 1024**power:.{1 if power else 0}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def printable(text: str) -> str:
    """Without the control characters that a name, or a meta from elsewhere, may send to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _options(run: Path) -> dict[str, Any]:
    """--keep_last, --keep_every and --keep_best as the run was last started; the defaults where that is not known."""
    defaults = {name: getattr(RunConfig, name) for name in ("keep_last", "keep_every", "keep_best")}
    path = run / CONFIG
    try:
        there = read_values(regular(path), yaml.safe_load)
    except UserError:
        there = {}
    if not there:
        say(f"note: {path} cannot be read, so the reasons are those of the defaults of --keep_last and --keep_every")
    given = {name: there[name] for name, value in defaults.items() if type(there.get(name)) is type(value)}
    return {**defaults, **given}


def _train_losses(run: Path | None) -> dict[int, float]:
    """Step -> training loss, of the steps that were logged."""
    try:
        rows, _ = parse_rows(regular(run / METRICS_FILE)) if run else ([], [])
    except (UserError, OSError):
        return {}
    return {row["step"]: row[TRAIN_LOSS] for row in rows if row.get(TRAIN_LOSS) is not None}
