"""What the report of a study shows: its question, runs, curves, fits, noise and configurations, as JSON values."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import UserError
from lit_gpt.lab.curves import curves_of
from lit_gpt.lab.fits import BEST, fit_of
from lit_gpt.lab.repeats import KINDS, noise_beside, noise_of, repeated, varied
from lit_gpt.lab.run_files import STATES
from lit_gpt.lab.runs import COLUMNS, Run, flat, read_runs
from lit_gpt.lab.where import matching
from lit_gpt.metrics.labels import axis_label
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.noise import student
from lit_gpt.train.folder_names import IDENTITY
from lit_gpt.utils.files import read_object_if_any

STUDY = "study.yaml"
WAITING = "waiting"
ALL_STATES = {**STATES, WAITING: "it did not start yet"}
OUTCOMES = ("loss", "flops", "parameters", "tokens", "steps")  # columns that the table shows, beside settings
SETTINGS, EVALUATIONS = 6, 4  # so many of each, at most; a reader may add others
RAN = ("command", "started", "host", "devices", "world_size", "torch")  # of environment.json


def content(paths: Sequence[Path], where: str | None, laws: Sequence[str], samples: int = 1000) -> dict[str, Any]:
    """Everything that the page shows. laws: see `read_law`; none is a power law of the lowest losses over compute.

    Raises UserError for folders without runs, and for laws that do not exist.
    """
    asked = [(text, *read_law(text)) for text in laws or BEST]
    study = _study(paths[0])
    runs = _runs(paths, study)
    runs = matching(runs, where) if where else runs
    if not runs:
        raise UserError(f"No run in {paths[0]} has {where}. Loosen --where.")
    runs = sorted(runs, key=lambda run: (run.state == WAITING, _counted(run.name)))
    started = [run for run in runs if run.state != WAITING]
    shared, own = apart([_configuration(run) for run in started or runs])
    own += [dict(run.settings) for run in runs if run.state == WAITING and started]
    curves = [curves_of(run) for run in runs]
    return {
        "title": paths[0].resolve().stem,
        "question": str(study.get("question") or ""),
        "made": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "from": [str(path) for path in paths],
        "where": where or "",
        "states": ALL_STATES,
        "columns": _columns(runs),
        "shown": _shown(runs),
        "runs": [_of_run(*one) for one in zip(runs, own, curves)],
        "shared": shared,
        "metrics": {key: axis_label(key) for key in dict.fromkeys(key for found in curves for key in found)},
        "noise": _noise(runs),
        "fits": [_fit(runs, *one, samples) for one in asked],
    }


def is_done(found: Mapping[str, Any]) -> bool:
    """Whether no run changes any more without somebody starting it again."""
    return all(run["state"] not in ("running", WAITING) for run in found["runs"])


def read_law(text: str) -> tuple[str, dict[str, str], dict[str, float]]:
    """(name, symbol -> column, parameter -> fixed value) of a text such as power:x=tokens,c=0.

    Raises UserError for a law, a symbol or a parameter that does not exist.
    """
    name, _, rest = text.partition(":")
    law, reads, fixed = law_named(name), dict[str, str](), dict[str, float]()
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        try:
            if not equals or key not in (*law.reads, *law.fixable):
                raise ValueError
            (reads if key in law.reads else fixed)[key] = value if key in law.reads else float(value)  # type: ignore[assignment]
        except ValueError as error:
            known = ", ".join((*(f"{s}=COLUMN" for s in law.reads), *(f"{p}=NUMBER" for p in law.fixable)))
            raise UserError(f"--law {text}: {part!r} is not for this law. After the colon it takes {known}.") from error
    return name, reads, fixed


def apart(configurations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what all have alike, what each has besides)."""
    first = configurations[0]
    shared = {k: v for k, v in first.items() if all(k in one and one[k] == v for one in configurations)}
    return shared, [{k: v for k, v in one.items() if k not in shared} for one in configurations]


def _counted(name: str) -> list[tuple[int, str]]:
    """A key that sorts d8 before d16."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _study(path: Path) -> dict[str, Any]:
    file = path / STUDY
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({error}). Write it again.") from error
    return found if isinstance(found, dict) else {}


def _runs(paths: Sequence[Path], study: Mapping[str, Any]) -> list[Run]:
    """Those that are there, and rows of the study that did not start yet."""
    rows = [row for row in study.get("rows") or [] if isinstance(row, dict) and "name" in row]
    runs = read_runs(paths) if not rows or _has_runs(paths) else []
    there = {run.folder.parent.name for run in runs if run.folder}
    return runs + [
        Run(str(row["name"]), None, WAITING, {k: v for k, v in row.items() if k != "name"})
        for row in rows
        if row["name"] not in there
    ]


def _has_runs(paths: Iterable[Path]) -> bool:
    return any(path.is_file() or next(path.glob("*/*/config.yaml"), None) for path in paths)


def _columns(runs: Sequence[Run]) -> dict[str, str]:
    """Every number of these runs, in words."""
    present = {key for run in runs for key in run.numbers}
    others = dict.fromkeys(key for run in runs for key in run.numbers if key not in COLUMNS)
    return {key: words for key, words in COLUMNS.items() if key in present} | {key: key for key in others}


def _shown(runs: Sequence[Run]) -> list[str]:
    columns = _columns(runs)
    started = [run for run in runs if run.state != WAITING] or runs
    settings = [key for key in varied(started) if key not in OUTCOMES][:SETTINGS]
    evaluations = [key for key in columns if "/" in key and not key.endswith("_stderr")][:EVALUATIONS]
    return [*settings, *(key for key in OUTCOMES if key in columns), *evaluations]


def _of_run(run: Run, own: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state,
        "folder": str(run.folder or ""),
        "numbers": dict(run.numbers),
        "own": dict(own),
        "started": run.state != WAITING,
        "curves": curves,
    }


def _configuration(run: Run) -> dict[str, Any]:
    """Options under their names; Plan, model and numerics, and what ran it, with the name of the file before a dot."""
    found = {key: value for key, value in run.settings.items() if value is not None}
    if run.folder is None:
        return found
    for part in IDENTITY:
        found |= {f"{part}.{key}": value for key, value in flat(read_object_if_any(run.folder / f"{part}.json"))}
    environment = run.environment
    ran = {key: environment[key] for key in RAN if key in environment} | {"git": environment.get("git")}
    return found | {f"ran.{key}": value for key, value in flat(ran)}


def _noise(runs: Sequence[Run]) -> dict[str, Any]:
    """kinds: kind -> noise of single runs, and Student's t of it; beside: that of runs which share their seeds, None
    where it is not known; groups: those that were repeated.
    """
    found = {kind: (words, noise_of(runs, kind=kind).noise) for kind, words in KINDS.items()}
    found["beside"] = ("other settings at the same seeds", noise_beside(runs))
    kinds = {
        kind: {"words": words, **vars(noise), "t": student(noise.free)}
        for kind, (words, noise) in found.items()
        if noise.free
    }
    beside = kinds.pop("beside", None)
    groups = repeated(runs)
    differ = varied([group[0] for group in groups])[:SETTINGS] if groups else []
    return {"kinds": kinds, "beside": beside, "groups": [_repeated(group, differ) for group in groups]}


def _repeated(group: Sequence[Run], differ: Sequence[str]) -> dict[str, Any]:
    spreads = {kind: vars(noise_of(group, kind=kind).noise) for kind in KINDS}
    losses = [run.numbers["loss"] for run in group]
    return {
        "runs": [run.name for run in group],
        "settings": {key: group[0].settings.get(key) for key in differ},
        "mean": sum(losses) / len(losses),
        "spreads": {kind: noise for kind, noise in spreads.items() if noise["free"]},
    }


def _fit(
    runs: Sequence[Run], text: str, name: str, reads: Mapping[str, str], fixed: Mapping[str, float], samples: int
) -> dict[str, Any]:
    """A fit, or why there is none: a study that is under way has too few runs at first."""
    law = law_named(name)
    try:
        return {**fit_of(runs, name, reads, fixed, samples), "law": text}
    except UserError as error:
        return {"law": text, "sentence": law.sentence, "formula": law.formula, "why": str(error)}
