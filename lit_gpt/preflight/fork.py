"""What a fork takes over from the run that it goes on from (--fork_from), and what it says about that in its Plan.

It is found out once, when the fork starts, and stands in its Plan from then on: the other run may train on, move or be
deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import identity_of, newest_published, none_left, read_meta
from lit_gpt.data.corpus import Corpus
from lit_gpt.data.cursor import offsets_from
from lit_gpt.data.kept_tokenizer import FOLDER as TOKENIZER
from lit_gpt.data.kept_tokenizer import tokenizer_from
from lit_gpt.data.origin import agree
from lit_gpt.data.remote import NoData
from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.optim import share_rules
from lit_gpt.scaling.base import Fork, Plan
from lit_gpt.scaling.schedule import fraction
from lit_gpt.utils.files import read_object, understood

PLAN = "plan.json"  # of a run folder, see train/run_folder.py


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a fork starts from. fork: without what depends on the fork's own Plan.

    made_with: the tokenizer of its data, see _made_with.
    """

    fork: Fork
    plan: Plan
    data: dict[str, Any]
    made_with: str | None = None


def known_fork(fork_from: str | None, folder: Path) -> Fork | None:
    """What a run folder says of its own start, where --fork_from still names that place; None for a new fork."""
    if fork_from is None:
        return None
    try:
        fork = Plan.from_dict(read_object(folder / PLAN)).fork
    except (UserError, TypeError, KeyError, ValueError, AttributeError):
        return None  # no run folder yet, or one that check_folder refuses
    if fork is None:
        return None
    typed, step = Path(fork_from), Path(fork.path)
    return fork if {typed.resolve(), _place(typed)} & {step, step.parent, step.parent.parent} else None


def _place(path: Path) -> Path:
    """The absolute path; a step that was moved and linked back stays in its run, where --fork_from RUN finds it."""
    return path.parent.resolve() / path.name


def read_origin(path: Path, experts: bool) -> Origin:
    """The newest checkpoint of a run, or the one that `path` is. Its tensors are checked when they are loaded.

    experts: whether the fork has some. Raises UserError where there is none, for exported files, which have no
    optimizer state, and for a dense model that is to have experts.
    """
    step = None if path.is_file() else newest_published(path)
    if step is None:
        raise UserError(
            f"--fork_from {path}: there is no checkpoint of a run with its optimizer. Give a run folder or a step-* "
            f"folder; an exported file has weights alone, which --init_from takes.{none_left(path)}"
        )
    meta = read_meta(step)
    with understood(step):
        plan = Plan.from_dict(meta["plan"])
        before = plan.fork
        if experts and not meta["model"].get("experts"):
            raise UserError(
                f"--fork_from {path} is a dense model, whose optimizer has no state for experts. Give --init_from "
                "instead, which makes the experts of its weights."
            )
        parents = (*before.parents, f"{before.path}, after {before.tokens:,} tokens") if before else ()
        fork = Fork(str(_place(step)), identity_of(step), meta["step"], meta["tokens"], parents=parents)
        fraction(plan.schedule, meta["tokens"])  # of numbers
        return Origin(fork, plan, dict(meta["data"]), _made_with(step, meta))


def start_of(fork: Fork, found: Sequence[str | None]) -> dict[str, Any]:
    """The meta of the checkpoint that a fork starts from, where it is still the one that its Plan was made for.

    found: the identity that each process found there. Raises UserError where the other run wrote another one since.
    """
    step = Path(fork.path)
    if len(set(found)) > 1:
        raise UserError(
            f"--fork_from: the run in {step.parent.parent} saved a checkpoint while this one started, and its "
            "processes found different ones. Type the same command again, or name a step-* folder."
        )
    meta = read_meta(step)
    if identity_of(step) != fork.identity:
        raise UserError(
            f"{step} is another checkpoint by now than the one that this fork began with, and the fork has none of its "
            "own yet. Put the old one back, or start under another --train_name."
        )
    return meta


def taken_over(origin: Origin, plan: Plan) -> Fork:
    """The fork of a Plan, with the roles whose optimizer state starts anew and why."""
    fresh = {}
    kept_in, was_in = (p.optimizer_args.get("state", "fp32") for p in (plan, origin.plan))
    for role in (name for name in plan.roles if plan.counts.get(name)):
        before, now = (p.roles[role].update_rule if role in p.roles else "" for p in (origin.plan, plan))
        if before != now:
            fresh[role] = f"{now}, which was {before or 'not there'}"
        elif not share_rules(origin.plan.optimizer, plan.optimizer):
            fresh[role] = f"{plan.optimizer}, which was {origin.plan.optimizer}"
        elif kept_in != was_in:
            fresh[role] = f"state in {kept_in}, which was in {was_in}"
    return replace(origin.fork, fresh=fresh)


def not_kept(origin: Origin, plan: Plan) -> tuple[str, ...]:
    """Notes on what a fork does not go on with: averages, and the learning rate where it jumps."""
    tokens, plans = origin.fork.tokens, (origin.plan, plan)
    left = ", ".join(f"{half_life:,}" for half_life in origin.plan.ema if half_life not in plan.ema)
    notes = (
        (f"the averages with half-lives of {left} tokens are not kept, since --ema does not name them",) if left else ()
    )
    for role in (name for name in plan.roles if plan.counts.get(name) and name in origin.plan.roles):
        before, now = (p.roles[role].lr * fraction(p.schedule, tokens) for p in plans)
        if origin.plan.roles[role].update_rule == plan.roles[role].update_rule and abs(now - before) > 0.01 * before:
            said = f"the learning rate of the {role} was {before:.3g} where the fork begins and is {now:.3g} now"
            return (*notes, said)
    return notes


def _made_with(step: Path, meta: dict[str, Any]) -> str | None:
    """Where the tokenizer of the other run is, or "bytes"; None where nobody knows. Copies have none beside them."""
    if (kept := step.parent.parent / TOKENIZER).is_dir():
        return str(kept)
    said = tokenizer_from(meta)
    if said is None or not said.present:
        return None
    return "bytes" if said.kind == "bytes" else said.source


def _check_tokenizer(made_with: str | None, corpus: Corpus) -> None:
    """Raise UserError for data of another tokenizer than that of the other run, where it is known."""
    if made_with is not None:
        agree([(made_with, StreamInfo(made_with=made_with)), ("the data of this run", corpus.common)])


def place_in_data(fork: Fork, origin: Origin, open_with: Callable[[Fork], Corpus]) -> Fork:
    """Where the data goes on: at the next sample where its order is the other run's, else source by source.

    open_with: the training data as a fork reads it, by its samples and offsets.
    """
    state, before = origin.data, origin.plan.fork
    with understood(fork.path):
        same = replace(fork, samples=int(state["samples_seen"]), offsets=dict(before.offsets) if before else {})
        try:
            corpus = open_with(same)
            _check_tokenizer(origin.made_with, corpus)
            if corpus.fingerprint == state["fingerprint"]:
                return replace(same, data="the place in the data is kept")
            offsets = {name: n for name, n in offsets_from(state, open_with(fork)).items() if n}
        except NoData as missing:  # which is an error once the run opens it
            return replace(fork, data=f"the place in the data is not known ({missing})")
    seen = ", ".join(f"{name} goes on after {n:,} windows" for name, n in offsets.items())
    data = f"the order of samples is another: {seen + ', other sources' if seen else 'all sources'} from the start"
    return replace(fork, data=data, offsets=offsets)
