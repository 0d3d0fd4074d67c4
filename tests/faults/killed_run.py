"""pretrain.py in processes of their own, which can be killed at any operation on a file."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from spawn import start
from tiny_run import pretrain, words

from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.train import lease, reporter

KILLED = 137
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
OPTIONS: dict[str, Any] = {"depth": 1, "micro_bsz": 1, "total_bsz": 64, "max_tokens": 128, "save_step": 1}
OPTIONS |= {"base_hps.b0": 64, "base_hps.warmup_tokens": 0, "keep_last": 1}


def resolved_of(data: Path, out: Path, **options: Any) -> ResolvedRun:
    """What the command line of such a run means."""
    return resolve_run(parse(words(data, out, **{**OPTIONS, **options})), 1)


def kill_at(operation: int, folder: Path) -> None:
    """End this process before its n-th operation (from 0) that changes something below `folder`."""
    left = [operation]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = arguments[0] if event in CHANGES else "", event in CHANGES
        if changes and f"{os.fspath(path)}/".startswith(f"{folder}/"):
            if not left[0]:
                os._exit(KILLED)
            left[0] -= 1

    sys.addaudithook(count)


def train(arguments: list[str], said: Path, operation: int | None, out: Path) -> None:
    """In the process: pretrain.py, which may be killed. The lease has short times."""
    torch.set_num_threads(1)
    lease.RENEW_EVERY, lease.STALE_AFTER = 0.05, 2.0
    reporter.draw_loss_curve = lambda *_: None  # ten times as long as the rest
    if operation is not None:
        kill_at(operation, out)
    with said.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = pretrain.main(arguments)
    os._exit(code)


def launch(data: Path, out: Path, *, operation: int | None = None, **options: Any) -> tuple[Any, Path]:
    """A started process, and the file that it speaks to. operation: see kill_at."""
    said = out.with_suffix(".txt")
    return start(train, words(data, out, **{**OPTIONS, **options}), said, operation, out), said


def run_killed(data: Path, out: Path, **options: Any) -> tuple[int, str]:
    """Exit code of a whole run, and everything that was said about this folder so far."""
    process, said = launch(data, out, **options)
    process.join(120)
    return process.exitcode, said.read_text()
