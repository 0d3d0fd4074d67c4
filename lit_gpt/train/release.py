"""A finished run that is seen again: what is said of it, and what it left although --keep_last 0 keeps no checkpoint.

A run deletes its last checkpoint after its summary is on the disk. One that was killed in between has still to do so.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from lit_gpt.checkpoint import list_checkpoints
from lit_gpt.checkpoint.layout import discard, step_of
from lit_gpt.checkpoint.retention import why_kept
from lit_gpt.errors import NotOwner, NotWritten, UserError
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.train.folder_names import CONFIG
from lit_gpt.train.identity import changed_options
from lit_gpt.train.lease import take_lease
from lit_gpt.train.run_folder import finished_summary, sync_log
from lit_gpt.utils.files import read_object, regular

RETENTION = ("keep_last", "keep_every", "keep_best")


def finished_already(resolved: ResolvedRun, tokens: int) -> str:
    """The sentence on a run that has nothing to do; deletes what it does not keep, unless other options are typed now.

    Only the main process calls this.
    """
    folder = resolved.folder
    same = not set(RETENTION) & changed_options(folder / CONFIG, resolved.run).keys()
    deleted = release_finished(folder) if same else []
    said = f"{folder} is finished already: {tokens:,} tokens."
    if deleted:
        said += f" Deleted {', '.join(deleted)}, which --keep_last 0 does not keep."
    if not list_checkpoints(folder / "checkpoints"):
        said += " No checkpoint is left."
    return f"{said} Nothing to do."


def release_finished(folder: Path) -> list[str]:
    """Delete the checkpoints that a finished run with --keep_last 0 does not keep, as its end does; their names.

    Touches nothing where the run is not known to have finished, is another process's, or cannot be written.
    """
    if not _left(folder):
        return []
    try:
        lease = take_lease(folder)
    except (NotOwner, NotWritten):
        return []
    try:
        left = _left(folder)  # as nobody changes it now
        if left:
            sync_log(folder)
        return [path.name for path in left if discard(path)]
    finally:
        lease.close()


def _left(folder: Path) -> list[Path]:
    """The checkpoints that a finished run does not keep by the options that it was last started with."""
    try:
        summary, budget = finished_summary(folder), read_object(folder / "plan.json")["tokens"]
        options = yaml.safe_load(regular(folder / CONFIG).read_text(encoding="utf-8"))
        keep_last, keep_every, keep_best = (options[name] for name in RETENTION)
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return []  # no run of ours, or a damaged one
    present = list_checkpoints(folder / "checkpoints")
    later = any(step_of(path) > summary.get("step", 0) for path in present)
    if keep_last != 0 or not summary or summary["tokens"] < budget or later:
        return []
    reasons = why_kept(present, keep_last, keep_every, keep_best, finished=True)
    return [path for path, why in reasons.items() if not why]
