"""A row of a study: the options of one run of pretrain.py, its name, and the run that it goes on from."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lit_gpt.config.bounds import Text
from lit_gpt.errors import UserError
from lit_gpt.metrics.summary import SUMMARY_FILE
from lit_gpt.utils.files import read_object, told, write_text

OURS = ("out_dir", "resume", "dry_run")  # options that the runner itself gives
# Which checkpoints a run writes and keeps, and nothing of what it learns: these may change while a study runs.
STORED = ("save_step", "keep_last", "keep_every", "keep_best", "async_save")
FOLDER = Text("a name", 128, without="/\\")  # also a tracker's name of the run
NOTE = "row.json"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """One run of a study.

    options: of pretrain.py, as they are typed or as values. after: the row whose run this one is forked from. start:
    tokens that were trained before the fork. tokens: where it ends, of a fork; others say max_tokens. part: "trunk" of
    a run whose loss is of no decayed model and so belongs to no fit, "fork" of one that has decayed, else "".
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    start: int = 0
    tokens: int = 0
    part: str = ""

    def note(self) -> dict[str, Any]:
        """What row.json says, also to those who read runs: the name, the options, and the part in a trunk."""
        forked = {key: value for key, value in (("part", self.part), ("after", self.after)) if value}
        return {"name": self.name, **self.options, **forked}


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; --config comes first, since what follows it overrules it."""
    order = sorted(options, key=lambda key: key != "config")
    return [word for key in order for word in (f"--{key}", word_of(options[key]))]


def word_of(value: Any) -> str:
    """A value as it is typed: true, 0.001, a,b, {"a": 1}."""
    if isinstance(value, list | tuple) and all(not isinstance(part, list | dict) for part in value):
        return ",".join(map(word_of, value))
    return value if isinstance(value, str) else json.dumps(value)


def read_pairs(words: Sequence[str]) -> dict[str, str]:
    """The options among the words of a command line: --key value, --key=value, and --key, which is true.

    Raises UserError for a word that belongs to no option.
    """
    found: dict[str, str] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"{word!r} belongs to no option. After -- give options of pretrain.py: --key value.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        found[key] = value
    return found


def of_each(items: Sequence[T], make: Callable[[T], R], label: Callable[[T], str]) -> list[R]:
    """What `make` makes of each. Raises one UserError with what is wrong with all of them, each sentence once."""
    found, wrong = list[R](), defaultdict[str, list[str]](list)
    for item in items:
        try:
            found.append(make(item))
        except UserError as error:
            wrong[str(error)].append(label(item))
    if not wrong:
        return found
    told = [f"{few(names)}: {message}" for message, names in wrong.items()]
    raise UserError("\n  ".join([f"{sum(map(len, wrong.values()))} of {len(items)} runs cannot start.", *told]))


def few(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV table, less empty cells. Raises UserError for a table that cannot be run."""
    if not path.is_file():
        raise UserError(f"There is no table {path}. Give a CSV file with a column 'name' and columns of options.")
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line] or [[]]
    if uneven := [line for line in lines if len(line) != len(header)]:
        raise UserError(f"{path}: the header has {len(header)} cells, the row {','.join(uneven[0])!r} has not.")
    cells = [{key: cell for key, cell in zip(header, line) if cell} for line in lines]
    rows = [Row(cell.pop("name", ""), cell) for cell in cells]
    check_rows(rows, path, header)
    return rows


def check_rows(rows: Sequence[Row], path: Path, options: Iterable[str]) -> None:
    """Raise UserError for names that are no folders or not their rows' own, and for options that are the runner's."""
    names = [row.name for row in rows]
    unusable = [name for name in names if not FOLDER.allows(name) or name.startswith(".")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not rows or unusable or twice:
        found = f"twice: {', '.join(twice)}" if twice else f"{unusable or names}"
        raise UserError(f"{path} needs rows that each have a 'name' of their own, usable as a folder; found {found}.")
    if taken := [key for key in OURS if key in options]:
        raise UserError(f"{path} has the option {taken[0]!r}, which the runner sets itself. Remove it.")


def check_folder(row: Row, output: Path) -> bool:
    """Whether row.json says that this folder is the row's. Raises UserError when it is another's of this name."""
    note, said = output / row.name / NOTE, json.loads(json.dumps(row.note()))
    if not note.is_file():
        return False
    before = read_object(note)
    differing = [key for key in {**before, **said} if before.get(key) != said.get(key)]
    if changed := [key for key in differing if key not in STORED]:
        what = ", ".join(f"{key}: {before.get(key)} -> {said.get(key)}" for key in changed)
        raise UserError(
            f"{note.parent} was run with other options ({what}). Give the row a new name, or the study a new --output."
        )
    return True


def mark_folders(rows: Sequence[Row], output: Path) -> None:
    """Write row.json, which says whose a folder is. Raises UserError, and writes nothing, where one is another's."""
    for row in [row for row in rows if not check_folder(row, output)]:
        note = output / row.name / NOTE
        with told(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(row.note()) + "\n")


def unmark_folder(row: Row, output: Path) -> None:
    """Take row.json away where no run was made, as of options that pretrain.py refuses: other options may be."""
    if run_folder_of(output / row.name) is None:
        (output / row.name / NOTE).unlink(missing_ok=True)


def run_folder_of(row_folder: Path) -> Path | None:
    """The run folder that pretrain.py made below a row's folder, the newest; None while there is none."""
    found = [path.parent for path in row_folder.glob("*/plan.json")] + [p.parent for p in row_folder.glob("*/lease-*")]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def summary(row_folder: Path) -> dict[str, Any]:
    """The summary.json of the run below a row's folder, empty while there is none."""
    found = sorted(row_folder.glob(f"*/{SUMMARY_FILE}"), key=lambda path: path.stat().st_mtime)
    return read_object(found[-1]) if found else {}
