"""Train a language model: `python pretrain.py --help`, or under torchrun on any number of GPUs."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import lit_gpt.utils.phases  # noqa: F401 (the clock of a start)
from lit_gpt.config.cli import parse
from lit_gpt.config.command import end, exit_code, whatever_comes
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import EXIT_NOT_WRITTEN
from lit_gpt.metrics.background import hanging
from lit_gpt.utils.launcher import world_size
from lit_gpt.utils.signals import Signals
from lit_gpt.utils.streams import lost_output, make_unfailing, make_warnings_plain


def run(options: RunConfig, signals: Signals | None = None) -> int:
    """Carry out one command line; returns the exit code. signals: what listens already."""
    # Imported late: `--help` and a mistyped option should not wait for torch.
    from lit_gpt.preflight.resolved_run import dry_run_text, resolve_run

    resolved = resolve_run(options, world_size())
    if options.dry_run:
        if resolved.run.eval_tasks:  # others need not wait for these imports
            from lit_gpt.train.task_scores import check_before

            check_before(resolved)
        print(dry_run_text(resolved))
        return 0
    from lit_gpt.train.loop import run_training

    return run_training(resolved, signals)


def main(argv: list[str]) -> int:
    """Parse, run, and turn a UserError into one message and its exit code."""
    with Signals() as signals:
        return carried_out(argv, signals)


def carried_out(argv: list[str], signals: Signals) -> int:
    """As main, with what listens already."""
    return exit_code(lambda words: run(parse(words), signals), argv)


def leave(code: int) -> NoReturn:
    """End the process with `code`, without the exit hooks of a tracker's library that waits for its server."""
    if (why := lost_output()) and code == 0:
        code = EXIT_NOT_WRITTEN
        print(f"error: standard output could not be written ({why}); nothing else is missing.", file=sys.stderr)
    if code:  # torchrun ends all processes after the first one that failed; this one ends by itself, with its code
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end(code, at_once=hanging())


def command(argv: list[str]) -> NoReturn:
    """main, and the end of the process with its code."""
    with Signals() as signals:  # to the end: torchrun sends SIGTERM as soon as another process has failed
        leave(whatever_comes(lambda: carried_out(argv, signals)))


if __name__ == "__main__":
    make_unfailing()
    make_warnings_plain()
    command(sys.argv[1:])
