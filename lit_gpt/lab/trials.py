"""Two sides of a comparison, trained: commits of this repository, or settings, with several seeds of each."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.lab.runs import FINISHED, read_runs, run_folders
from lit_gpt.utils.files import read_object, write_text

ROOT = Path(__file__).resolve().parents[2]  # of the checkout that this file is in
LAST_LINES = 8  # of the output of a run that failed


@dataclass(frozen=True)
class Side:
    """What one side is trained with. root: the checkout whose pretrain.py runs. launcher: what starts it."""

    name: str
    root: Path
    options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = (sys.executable,)


def side_of(name: str, typed: str, launcher: Sequence[str]) -> Side:
    """A side from settings as a person types them: "optimizer=muonh depth=8", or as "--optimizer muonh --depth 8".

    launcher='torchrun --nproc_per_node 2' among them is what starts its runs. Raises UserError for other words.
    """
    words, options = shlex.split(typed), list[str]()
    for word in words:
        key, equals, value = word.partition("=")
        if key == "launcher" and equals:
            launcher = shlex.split(value)
        elif word.startswith("-") or not equals:
            options.append(word)
        else:
            options.append(f"--{word}")
    if not words or not (options or words[0].startswith("launcher=")) or (options and not options[0].startswith("--")):
        raise UserError(f"{typed!r} are no settings. Type them as 'optimizer=muonh depth=8'.")
    return Side(name, ROOT, tuple(options), tuple(launcher))


def train(side: Side, seeds: Sequence[int], common: Sequence[str], output: Path) -> Path:
    """A run for each seed in <output>/<side>/<seed>, unless it is finished there; returns the folder of the side.

    Raises UserError for a run that fails, and where other options were trained there.
    """
    for seed in seeds:
        folder = output / side.name / f"seed_{seed}"
        words = [*common, *side.options, "--seed", str(seed)]
        _mark(folder, {"name": f"{side.name} seed {seed}", "side": side.name, "typed": shlex.join(words)})
        if _is_finished(folder):
            print(f"{folder}: finished before", flush=True)
            continue
        command = [*side.launcher, str(side.root / "pretrain.py"), *words, "--out_dir", str(folder), "--resume", "auto"]
        print(f"{folder}: {shlex.join(command)}", flush=True)
        if code := _run(command, side.root, folder / "log.txt"):
            last = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise UserError(f"The run in {folder} ended with exit code {code}. Its last lines:\n{last}")
    return output / side.name


@contextmanager
def commits(names: Sequence[str], launcher: Sequence[str]) -> Iterator[list[Side]]:
    """A side for each commit, checked out into a temporary worktree that is removed at the end; "." is the checkout.

    Raises UserError for what is no commit of this repository.
    """
    with tempfile.TemporaryDirectory(prefix="compare-") as place:
        sides: list[Side] = []
        try:
            for name in names:
                if name == ".":
                    sides.append(Side("working_tree", ROOT, launcher=tuple(launcher)))
                    continue
                known = _git("rev-parse", "--short", "--verify", f"{name}^{{commit}}").strip()
                root = Path(place) / f"{len(sides)}_{known}"
                _git("worktree", "add", "--detach", str(root), known)
                sides.append(Side(known, root, launcher=tuple(launcher)))
            yield sides
        finally:
            for side in (side for side in sides if side.root != ROOT):
                _git("worktree", "remove", "--force", str(side.root))


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"git cannot be started ({error}). Install it to compare commits.") from error
    if done.returncode:
        raise UserError(f"git {words[0]} {words[-1]}: {done.stderr.strip()}. Give commits of {ROOT}.")
    return done.stdout


def _run(command: Sequence[str], root: Path, log: Path) -> int:
    """The exit code. It imports its own code, and so do its workers; Ctrl-C reaches it, and it saves."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    with log.open("ab") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _mark(folder: Path, row: dict[str, str]) -> None:
    note = folder / "row.json"
    if note.is_file() and (before := read_object(note)) != row:
        raise UserError(
            f"{folder} was trained with {before.get('typed')}, and not {row['typed']}. Give another --output."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(row) + "\n")


def _is_finished(folder: Path) -> bool:
    return bool(run_folders(folder)) and all(run.state == FINISHED for run in read_runs([folder]))
