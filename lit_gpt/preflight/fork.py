"""What a fork takes over from the run that it goes on from (--fork_from), and what it says about that in its Plan.

It is found out once, when the fork starts, and stands in its Plan from then on: the other run may train on, move or be
deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import identity_of, newest_published, read_meta, understood
from lit_gpt.errors import UserError
from lit_gpt.optim import share_rules
from lit_gpt.scaling.base import Fork, Plan
from lit_gpt.utils.files import read_object

PLAN = "plan.json"  # of a run folder, see train/run_folder.py


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a fork starts from. fork: without what depends on the fork's own Plan."""

    fork: Fork
    plan: Plan
    data: dict[str, Any]


def known_fork(fork_from: str | None, folder: Path) -> Fork | None:
    """What a run folder says of its own start, where --fork_from still names that place; None for a new fork."""
    if fork_from is None:
        return None
    try:
        fork = Plan.from_dict(read_object(folder / PLAN)).fork
    except (UserError, TypeError, KeyError, ValueError, AttributeError):
        return None  # no run folder yet, or one that check_folder refuses
    typed = Path(fork_from).resolve()
    return fork if fork and typed in (Path(fork.path), *Path(fork.path).parents) else None


def read_origin(path: Path) -> Origin:
    """The newest checkpoint of a run, or the one that `path` is. Its tensors are checked when they are loaded.

    Raises UserError where there is none, and for exported files, which have no optimizer state.
    """
    step = None if path.is_file() else newest_published(path)
    if step is None:
        raise UserError(
            f"--fork_from {path}: there is no checkpoint of a run with its optimizer. Give a run folder or a step-* "
            "folder; an exported file has weights alone, which --init_from takes."
        )
    meta = read_meta(step)
    with understood(step):
        plan = Plan.from_dict(meta["plan"])
        before = plan.fork
        parents = (*before.parents, f"{before.path}, after {before.tokens:,} tokens") if before else ()
        fork = Fork(str(step.resolve()), identity_of(step), meta["step"], meta["tokens"], parents=parents)
        return Origin(fork, plan, dict(meta["data"]))


def taken_over(origin: Origin, plan: Plan) -> Fork:
    """The fork of a Plan, with the roles whose optimizer state starts anew and why."""
    fresh = {}
    for role in (name for name in plan.roles if plan.counts.get(name)):
        before, now = (p.roles[role].update_rule if role in p.roles else "" for p in (origin.plan, plan))
        if before != now:
            fresh[role] = f"{now}, which was {before or 'not there'}"
        elif not share_rules(origin.plan.optimizer, plan.optimizer):
            fresh[role] = f"{plan.optimizer}, which was {origin.plan.optimizer}"
    return replace(origin.fork, fresh=fresh)
