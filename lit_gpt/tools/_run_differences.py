"""What differs between two run folders: what was asked, what was planned, and what ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import unified_diff
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import renamed
from lit_gpt.scaling.plan import difference
from lit_gpt.train.folder_names import CONFIG, ENVIRONMENT
from lit_gpt.utils.files import near

PATCH_LINES = 60  # of the difference of two patches that are shown
OF_THE_START = ("command", "folder", "started")  # differ whenever a run starts, and say nothing
SOURCE = ("commit", "patch")


def differences(a: Path, b: Path) -> str:
    """Sections of lines "what: in a -> in b", one for each file of the archives; and the patches.

    Raises UserError for a folder that is no run's, and for one folder given twice.
    """
    for path in (a, b):
        check_run(path, CONFIG)
    if a.resolve() == b.resolve():
        raise UserError(f"{b} is the same folder as {a}, so nothing can differ. Give another run.")
    environments = [read_values(path / ENVIRONMENT, json.loads) for path in (a, b)]
    sections = {
        "options": [read_values(path / CONFIG, yaml.safe_load) for path in (a, b)],
        "plan": [read_values(path / "plan.json", _plan) for path in (a, b)],
        "model": [read_values(path / "model.json", _model) for path in (a, b)],
        "numerics": [read_values(path / "numerics.json", json.loads) for path in (a, b)],
        "data": [record.pop("data", {}) for record in environments],
        "packages": [record.pop("packages", {}) for record in environments],
        "source": [_source(record.pop("git", None)) for record in environments],
        "machine": [{k: v for k, v in record.items() if k not in OF_THE_START} for record in environments],
    }
    shown = {title: difference(*pair) for title, pair in sections.items()}
    shown["patch"] = _patches(a, b, *(source.get("patch") for source in sections["source"]))
    lines = [f"a: {a}", f"b: {b}"]
    for title, found in shown.items():
        lines += ["", title, *(f"  {line}" for line in found)] if found else []
    same = [title for title, found in shown.items() if not found]
    return "\n".join([*lines, "", f"the same: {', '.join(same) or 'nothing'}"])


def check_run(path: Path, file: str) -> None:
    """Raises UserError for a folder without this file, which all run folders have."""
    if not (path / file).is_file():
        where = "Give the folder that pretrain.py printed."
        raise UserError(f"{path} is no run folder: it has no {file}.{near(path, file)} {where}")


def _model(text: str) -> dict[str, Any]:
    """The values of a model.json, with the layers in words, and equal ones that follow each other once."""
    model = json.loads(text)
    named = [", ".join(f"{k} {v}" for k, v in layer.items() if v not in (None, False)) for layer in model["layers"]]
    return model | {"layers": "; ".join(f"{len(list(equal))} x ({name})" for name, equal in groupby(named))}


def _plan(text: str) -> dict[str, Any]:
    """The values of a plan.json, under today's names."""
    plan = json.loads(text)
    return {
        "data_seed": plan.get("seed"),
        **plan,
        "roles": {name: renamed(role) for name, role in plan.get("roles", {}).items()},
    }


def read_values(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The values of a file of the archive; empty where an earlier version did not write it.

    Raises UserError for a file that cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        return dict(parse(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}). Give the folder of another run.") from error


def _source(record: dict[str, Any] | None) -> dict[str, Any]:
    return {key: (record or {}).get(key) for key in SOURCE}


def _patches(a: Path, b: Path, patch_a: str | None, patch_b: str | None) -> list[str]:
    """The changes that only one of two runs had, as a diff of their patches."""
    if patch_a == patch_b:
        return []
    here, there = _lines(a, patch_a), _lines(b, patch_b)
    diff = list(unified_diff(here, there, str(patch_a), str(patch_b), n=0, lineterm=""))
    more = [f"... and {len(diff) - PATCH_LINES} more lines"] if len(diff) > PATCH_LINES else []
    return diff[:PATCH_LINES] + more


def _lines(folder: Path, name: str | None) -> list[str]:
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace").splitlines() if name else []
    except OSError:
        return []
