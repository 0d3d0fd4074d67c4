"""The checkpoints of a run: what is there and why it is kept; verify, delete, copy, average.

    python -m lit_gpt.tools.checkpoints out/my_run
    python -m lit_gpt.tools.checkpoints verify out/my_run
    python -m lit_gpt.tools.checkpoints delete out/my_run 100 200
    python -m lit_gpt.tools.checkpoints copy out/my_run 100 backup/my_run
    python -m lit_gpt.tools.checkpoints average out/my_run --last 4 --output average.safetensors

Instead of the run folder, its checkpoints folder or one step folder can be given. What a person put beside the
checkpoints is shown and never changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.errors import NotOwner, NotWritten, UserError
from lit_gpt.tools._cli import local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins
from lit_gpt.train.lease import owner_of, take_lease

ABOUT = {  # the commands
    "list": "What is there, and why each checkpoint is kept. This is what happens without a command, too.",
    "verify": "Check that the files of every checkpoint are what was written, as inspect checkpoint --verify does.",
    "delete": "Delete checkpoints; never asks. The newest whole one stays, unless forced.",
    "copy": "Copy a whole checkpoint to TO/checkpoints, from where --resume and --init_from take it.",
    "average": "Write the mean of the weights of the newest checkpoints to an exported file.",
}
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "list": {},
    "verify": {},
    "delete": {
        "steps": {"nargs": "*", "default": [], "help": "numbers of steps, or names as the list shows them"},
        "--force": {"action": "store_true", "help": "delete the newest, too, or older ones while a process trains"},
    },
    "copy": {
        "step": {
            "nargs": "?",
            "help": "number of a step, or a name as the list shows it; not needed for a step folder",
        },
        "to": {"type": local_path, "help": "run folder to copy it to; it goes into its folder checkpoints"},
    },
    "average": {
        "--last": {"type": int, "required": True, "help": "number of newest checkpoints to average"},
        "--output": {"type": local_path, "required": True, "help": "file to write, .pth or .safetensors"},
    },
}


def read(argv: list[str]) -> Namespace:
    """The parsed command line."""
    parser = parser_for("checkpoints", "What checkpoints are there, and why? Without a command: list.")
    commands = parser.add_subcommands(required=True, dest="what")
    for name, about in ABOUT.items():
        command = parser_for(f"checkpoints {name}", about)
        command.add_argument("run", type=local_path, help="run folder, its checkpoints folder, or one step folder")
        for argument, options in ARGUMENTS[name].items():
            command.add_argument(argument, **options)
        if name == "average":
            add_plugins(command)
        commands.add_subcommand(name, command, help=about)
    if argv and argv[0] not in ABOUT and not argv[0].startswith("-"):
        argv = ["list", *argv]
    return parser.parse_args(argv)


answer_early(__name__, read)

from lit_gpt.checkpoint import damage, list_checkpoints
from lit_gpt.checkpoint.copying import copy_checkpoint
from lit_gpt.checkpoint.layout import NEW, OLD, discard, say, step_of
from lit_gpt.tools._checkpoint_folder import CHECKPOINTS, Place, human, is_left, is_ours, place_of, size_of, table
from lit_gpt.tools._model_values import use_plugins
from lit_gpt.tools.average import write_average
from lit_gpt.tools.inspect import verified


def show(place: Place) -> str:
    """What is there, and why each checkpoint is kept."""
    return table(place)


def verify(place: Place) -> str:
    """Check that the files of every checkpoint are what was written, as inspect checkpoint --verify does."""
    return verified(place.step or place.folder)


def delete(place: Place, steps: Sequence[str], force: bool) -> str:
    """Delete checkpoints; never asks. The newest whole one stays, unless forced.

    steps: numbers of steps, or names of checkpoints and of what killed runs left. force: delete also the newest whole
    one where no process trains, and older ones where one does. What was freed, in words. Raises UserError, before
    anything is deleted, for what is not to be deleted.
    """
    doomed = _named(place, steps)
    with _in_use(place, force) as used:
        if used and (busy := [path.name for path in doomed if is_left(path) or path.name.endswith(NEW)]):
            raise UserError(f"{', '.join(busy)} may be what {used} is writing, so it cannot be deleted. Stop it first.")
        newest = _newest_whole(place.folder) if used or not force else None
        if newest in doomed:
            instead = "Stop that process first" if used else "Name other steps, or add --force"
            raise UserError(f"{newest} is the newest whole checkpoint, from which the run would go on. {instead}.")
        freed, stay = 0, []
        for path in doomed:
            size = size_of(path) or 0
            if discard(path):
                freed += size - _rest(path)
            elif os.path.lexists(path):  # else the run was faster
                stay.append(path.name)
    if stay:
        raise UserError(f"{', '.join(stay)} could not be deleted; {human(freed)} were freed. Permit it, and try again.")
    return f"deleted {', '.join(path.name for path in doomed)}: {human(freed)} freed"


def _rest(path: Path) -> int:
    """Bytes of a deleted checkpoint that could not be removed, which is said when it happens."""
    return sum(size_of(rest) or 0 for rest in (path, path.with_name(OLD + path.name)) if os.path.lexists(rest))


@contextmanager
def _in_use(place: Place, force: bool) -> Iterator[str]:
    """Own the run folder meanwhile, so that no process starts to train in it; who does already, "" for nobody.

    Raises UserError where one does and nothing is forced.
    """
    if place.run is None:
        yield ""
        return
    try:
        lease = take_lease(place.run)
    except NotOwner as error:
        owner = owner_of(place.run) or "another process"
        if not force:
            raise UserError(
                f"{place.run} is in use by {owner}. Stop that process first, or add --force to delete checkpoints that "
                "it does not need."
            ) from error
        yield owner
        return
    except NotWritten as error:
        raise NotWritten(f"Nothing can be deleted: {error}") from error
    try:
        yield ""
    finally:
        lease.close()


def _newest_whole(folder: Path) -> Path | None:
    """What a run would go on from. The sums are checked, so that what stays can be used."""
    return next((path for path in reversed(list_checkpoints(folder)) if damage(path) is None), None)


def _named(place: Place, steps: Sequence[str]) -> list[Path]:
    """The checkpoints, and what killed runs left, of these numbers or names. Raises UserError for all else."""
    if place.step and not steps:
        steps = [place.step.name]
    if not steps:
        raise UserError(f"Which checkpoints of {place.folder}? Give the numbers of their steps, such as 100.")
    return list(dict.fromkeys(path for word in steps for path in _of_word(place.folder, word)))


def _of_word(folder: Path, word: str) -> list[Path]:
    entries = [folder / name for name in sorted(os.listdir(folder))]
    steps = {path: str(step_of(path)) for path in entries if is_ours(path)}
    if word.isascii() and word.isdecimal():
        found = [path for path, step in steps.items() if step == (word.lstrip("0") or "0")]
    else:
        found = [path for path in entries if path.name == word and (path in steps or is_left(path))]
    if not found and folder / word in entries:
        raise UserError(
            f"{folder / word} is no checkpoint of the run but a person's own, which is not changed here. To list, "
            "verify or copy it, give its path in place of the run's."
        )
    if not found:
        there = sorted({int(step) for step in steps.values()})
        listed = ", ".join(map(str, there if len(there) <= 8 else [*there[:3], "...", *there[-3:]])) or "none"
        raise UserError(f"{folder} has no checkpoint {word[:40]!r}; its steps are: {listed}.")
    return found


def copy(place: Place, step: str | None, to: Path) -> str:
    """Copy a whole checkpoint to TO/checkpoints, from where --resume and --init_from take it.

    Raises UserError where a process trains in TO.
    """
    source = place.step if place.step and step is None else _named(place, [] if step is None else [step])[0]
    run = to.parent if to.name == CHECKPOINTS else to
    if run.is_dir() and (owner := owner_of(run)):
        raise UserError(f"{run} is in use by {owner}, which would not expect another checkpoint. Stop it first.")
    copied = copy_checkpoint(source, run / CHECKPOINTS)
    return f"copied {source} to {copied}: {human(size_of(copied) or 0)}, and checked"


def average(place: Place, last: int, output: Path) -> str:
    """Write the mean of the weights of the newest checkpoints to an exported file.

    Raises UserError for a single checkpoint, and for more than there are.
    """
    if place.step:
        raise UserError(f"{place.step} is one checkpoint, and a mean needs several. Give the run folder.")
    found = list_checkpoints(place.folder)
    if left_out := sorted({path.name for path in place.folder.iterdir() if is_ours(path) and path not in found}):
        say(f"note: {', '.join(left_out)} left out: never whole, or damaged")
    if not 2 <= last <= len(found):
        raise UserError(f"--last is {last}; {place.folder} has {len(found)} checkpoints, and a mean needs two or more.")
    return write_average(found[-last:], output)


COMMANDS: dict[str, Callable[..., str]] = {
    "list": show,
    "verify": verify,
    "delete": delete,
    "copy": copy,
    "average": average,
}


def main(argv: list[str]) -> int:
    """Print what was asked for, or what was done."""
    values = read(argv)
    asked = values[values.what].as_dict()
    use_plugins(asked.pop("plugins", []))
    print(COMMANDS[values.what](place_of(asked.pop("run")), **asked))
    return 0


if __name__ == "__main__":
    run_command(main)
