"""Checkpoints of a model of a few numbers, and processes that save them and die at a chosen moment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint

META = {"tokens": 96, "plan": {"depth": 3}}
# What Python reports before it does them; see the table of audit events in its documentation.
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink")


class Alone:
    """One process without a launcher."""

    is_main, rank, world_size = True, 0, 1

    def barrier(self) -> None:
        """Nobody to wait for."""


class Run:
    """A model whose every number is the step, and its checkpoints."""

    def __init__(self, folder: Path, **options: Any):
        self.folder, self.options = folder, {"keep_last": 2, "async_save": False, **options}
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.saver: Checkpointer | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def save(self, *steps: int) -> None:
        self.saver = self.saver or Checkpointer(self.checkpoints, Alone(), **self.options)
        for step in steps:
            for p in self.model.parameters():
                p.data.fill_(step)
                self.optimizer.state[p]["momentum_buffer"] = torch.full_like(p, step)
            self.saver.save(step, self.model, self.optimizer, META)

    def load(self, resume: bool | str = True) -> int:
        """The step of the checkpoint that was loaded; every number is checked."""
        path = find_checkpoint(self.folder, resume)
        assert path is not None
        step = load_checkpoint(path, self.model, self.optimizer, Alone())["step"]
        for p in self.model.parameters():
            assert (p == step).all() and (self.optimizer.state[p]["momentum_buffer"] == step).all()
        return step

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())


def step(n: int) -> str:
    return f"step-{n:06d}"


def die_before(n: int) -> None:
    """From now on, leave without a word before the n-th change to any file."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or (event == "open" and not writes(*args)):
            return
        seen += 1
        if seen == n:
            os._exit(9)

    sys.addaudithook(hook)


def writes(path: Any, mode: str | None, flags: int) -> bool:
    return isinstance(path, str) and flags & os.O_ACCMODE != os.O_RDONLY
