"""Which runs are the same but for their seeds, and the noise between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from lit_gpt.lab.runs import FINISHED, Run
from lit_gpt.scaling.noise import UNKNOWN, Noise, fit_blocks, pooled
from lit_gpt.train.folder_names import IDENTITY
from lit_gpt.utils.files import read_object_if_any

SEEDS = ("seed", "data_seed")
# Of a run of a table, which has no Plan: the columns that say what it is, and not what came of it.
CONFIGURED = ("flops", "flops_6nd", "tokens", "parameters", "batch", "steps", "rate", "eta0", "weight_decay", "depth",
              "width", "context")  # fmt: skip
# Options that say where a run is kept, how it is watched and how fast it is, and not what it is.
ELSEWHERE = (
    "out_dir", "train_name", "resume", "dry_run", "stop_after", "save_step", "keep_last", "keep_every", "keep_best",
    "async_save", "log_step", "loggers", "num_workers", "profile_steps", "shard_group", "keep_gathered",
    "compile_cache", "collective_timeout", "tracker_name", "tracker_group", "tracker_tags", "wandb_project",
    "wandb_entity",
)  # fmt: skip
KINDS = {
    "weights": "weight seeds at one order of the data",
    "orders": "orders of the data at one start",
    "both": "other weights and another order",
}


class Repeats(NamedTuple):
    """The noise of one kind in groups of repeated runs. groups: the runs that were compared with each other."""

    noise: Noise
    groups: list[list[Run]]


def groups_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, in groups that have the same Plan, model, numerics and data but for seeds."""
    found: dict[Hashable, list[Run]] = {}
    for run in runs:
        found.setdefault(_but_seeds(run), []).append(run)
    return list(found.values())


def noise_of(runs: Sequence[Run], kind: str = "both") -> Repeats:
    """The noise of the loss between finished runs of one group, pooled over groups. kind: one of KINDS."""
    groups = [part for group in repeated(runs) for part in _of_kind(group, kind) if len(part) > 1]
    return Repeats(pooled([[float(run.value("loss")) for run in group] for group in groups]), groups)


def noise_beside(runs: Sequence[Run]) -> Noise:
    """The noise of a run beside others of its seeds: what a seed does to all configurations is taken out of it."""
    found: dict[tuple[str, Any], float] = {}
    for number, group in enumerate(repeated(runs)):
        for run in group:
            seeds = tuple(run.value(seed) for seed in SEEDS)
            if None not in seeds:
                found[str(number), seeds] = float(run.value("loss"))
    return fit_blocks(found).noise if found else UNKNOWN


def varied(runs: Sequence[Run], but: Iterable[str] = ELSEWHERE) -> list[str]:
    """The settings in which runs differ, in the order of the options."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in set(but))
    return [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]


def repeated(runs: Sequence[Run]) -> list[list[Run]]:
    """The groups of several of these runs that are finished and have a loss."""
    usable = [run for run in runs if run.state == FINISHED and isinstance(run.value("loss"), int | float)]
    return [group for group in groups_of(usable) if len(group) > 1]


def _of_kind(group: Sequence[Run], kind: str) -> Iterable[list[Run]]:
    """Parts of a group that differ in the kind alone; of "both", runs that share neither seed."""
    shared: dict[str, Callable[[Run], Any]] = {
        "weights": lambda run: run.value("data_seed"),
        "orders": lambda run: run.value("seed"),
        "both": lambda run: None,
    }
    parts: dict[Any, dict[Any, Run]] = {}
    for run in group:
        seeds = tuple(run.value(seed) for seed in SEEDS)
        here = parts.setdefault(shared[kind](run), {})
        if kind != "both" or None in seeds:
            here[seeds if None not in seeds else id(run)] = run
        elif not any(a in used for a, used in zip(seeds, zip(*here))):
            here[seeds] = run
    return [list(part.values()) for part in parts.values()]


def _but_seeds(run: Run) -> Hashable:
    if run.folder is None:
        settings = {key: value for key, value in run.settings.items() if key not in (*SEEDS, *ELSEWHERE)}
        return json.dumps([settings, {key: run.numbers.get(key) for key in CONFIGURED}], sort_keys=True, default=str)
    parts = {part: read_object_if_any(run.folder / f"{part}.json") for part in IDENTITY}
    for key in (*SEEDS, "memory", "fork"):
        parts["plan"].pop(key, None)
    sources = {name: corpus.get("sources") for name, corpus in run.environment.get("data", {}).items()}
    return json.dumps([parts, sources, run.settings.get("fork_from")], sort_keys=True)
