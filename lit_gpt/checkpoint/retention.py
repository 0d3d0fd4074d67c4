"""Which checkpoints stay, and why: the one rule, by which a save deletes and which the manager prints.

Everything is read from the folder, so the answer is the same after a crash, a resume, or on another host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint.layout import read_meta, step_of
from lit_gpt.errors import UserError

# Of meta.json: the metrics that were measured at exactly this step, {} for none; and a sentence why the checkpoint is
# kept for good, "" for none. Early checkpoints have neither.
VALIDATION, KEPT = "validation", "kept"
LOSS = "metric/val_loss@1x"  # at the training context
Metas = dict[Path, dict[str, Any]]


def why_kept(
    checkpoints: Sequence[Path], keep_last: int, keep_every: int = 0, keep_best: bool = False, finished: bool = False
) -> dict[Path, list[str]]:
    """Why each checkpoint stays; one without a reason is deleted by the next save.

    checkpoints: those of one folder, the oldest first. finished: the run has. With keep_last 0 the newest one stays
    until then, and afterwards only what keep_every and keep_best ask for. Links, which a person made, stay and do not
    count, and neither does a checkpoint whose meta cannot be read: it may be another version's.
    """
    metas = _counted(checkpoints)
    count = keep_last or int(not finished)
    newest, best = list(metas)[-count:] if count else [], _best(metas) if keep_best else None
    reasons: dict[Path, list[str]] = {path: [] for path in checkpoints}
    for path, found in reasons.items():
        if path not in metas:
            found.append("a link, which a person made" if path.is_symlink() else "its meta.json cannot be read")
            continue
        if count and (kept := metas[path].get(KEPT)):
            found.append(str(kept))
        if path in newest:
            until = "" if keep_last else ", until the run has finished"
            found.append(f"one of the newest {keep_last}" if keep_last > 1 else f"the newest{until}")
        if keep_every and step_of(path) % keep_every == 0:
            found.append(f"a multiple of {keep_every:,} steps")
        if path == best:
            found.append("the best validation loss")
    return reasons


def improves(values: Any, checkpoints: Iterable[Path]) -> bool:
    """Whether these metrics have a lower validation loss than every checkpoint that counts for why_kept."""
    metas = _counted(checkpoints)
    best = _best(metas)
    return loss_of(values) < (_loss(metas[best]) if best else math.inf)


def _counted(checkpoints: Iterable[Path]) -> Metas:
    return {path: meta for path in checkpoints if not path.is_symlink() and (meta := meta_of(path))}


def _best(metas: Metas) -> Path | None:
    """The lowest validation loss, of equal ones the oldest; None where nothing was measured."""
    best = min(metas, key=lambda path: _loss(metas[path]), default=None)
    return best if best and _loss(metas[best]) < math.inf else None


def _loss(meta: dict[str, Any]) -> float:
    return loss_of(meta.get(VALIDATION))


def loss_of(values: Any) -> float:
    """The validation loss among measured metrics; infinity for none, and for what is no finite number."""
    value = values.get(LOSS) if isinstance(values, dict) else None
    return value if isinstance(value, float) and math.isfinite(value) else math.inf


def meta_of(path: Path) -> dict[str, Any] | None:
    """The meta of a checkpoint, None where it cannot be read."""
    try:
        return read_meta(path)
    except (UserError, OSError):
        return None
