"""Saves that may fail: each failure is said, training goes on, and the last save is tried twice (departure D88)."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lit_gpt.checkpoint import Checkpointer
from lit_gpt.errors import NotWritten
from lit_gpt.train import run_folder
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.stopping import EXIT_INTERRUPTED


class Saver:
    """Starts saves, and knows which checkpoint is published and which one is being written.

    All ranks call its methods at the same points, and see the same failures, since the Checkpointer tells all of them.
    published: the step of the newest checkpoint that is whole, 0 for none.
    """

    def __init__(self, checkpoints: Checkpointer, report: Reporter, published: int):
        self.checkpoints, self.report, self.published = checkpoints, report, published
        self._writing: int | None = None

    def save(self, step: int, write: Callable[[], None]) -> None:
        """Begin a save; what became of the one before is said first. write: calls Checkpointer.save."""
        self.settle()
        self._writing = step
        with self.report.pause("checkpoint"):
            write()

    def improves(self, measured: dict[str, float]) -> bool:
        """Whether --keep_best asks to save what was measured just now. Without it no save is waited for."""
        if self.checkpoints.keep_best:
            self.settle()
        return self.checkpoints.improves(measured)

    def settle(self) -> None:
        """Wait for the save that is being written, if one is."""
        if self._writing is None:
            return
        with self.report.pause("checkpoint"):
            there = self.checkpoints.wait()
        if there:
            self.published = self._writing
        else:  # which the Checkpointer has said
            self.report.record({"checkpoint/failed_saves": self.checkpoints.failures})
        self._writing = None

    def finish(self, step: int, write: Callable[[], None]) -> bool:
        """Have the checkpoint of `step`, with a second try; whether it is there."""
        self.settle()
        for _ in range(2):
            if self.published != step:
                self.save(step, write)
                self.settle()
        return self.published == step

    def newest(self) -> str:
        """Which checkpoint is there, in words that end a sentence."""
        there = (
            f"the newest checkpoint is that of step {self.published}" if self.published else "there is no checkpoint"
        )
        return there if self._writing is None else f"{there}, with that of step {self._writing} being written"

    def close(self, code: int, saved: bool) -> None:
        """Write the summary, and say so if that fails; after it, delete what a finished run does not keep.

        code, saved: see Reporter.close. Raises NotWritten where that is the only thing that went wrong.
        """
        try:
            self.report.close(code, saved)
        except NotWritten as lost:
            if code in (0, EXIT_INTERRUPTED):
                raise
            print(f"error: {lost}", file=sys.stderr)
        else:
            self._release()

    def _release(self) -> None:
        """Only once this very run is known to have finished: by the disk, also after a power cut."""
        folder, checkpoints = self.report.folder, self.checkpoints
        if not checkpoints.is_main:
            return
        if run_folder.finished_summary(folder).get("tokens") == self.report.progress.tokens:
            run_folder.sync_log(folder)
            checkpoints.release()
