"""SIGTERM and Ctrl-C end a run cleanly: the current step finishes, a checkpoint is saved."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from lit_gpt.parallel import Runtime

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start again with --resume auto


class StopRequest:
    """Listens for SIGTERM and SIGINT; a second Ctrl-C interrupts at once.

    Every rank asks `agreed` after each step, so that all stop at the same one even when the
    signal reached only some of them.
    """

    def __init__(self, runtime: Runtime):
        self.runtime, self.asked = runtime, False
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Collective, on the host."""
        if self.runtime.world_size == 1:
            return self.asked
        return bool(self.runtime.sum(torch.tensor(float(self.asked))).item())

    def close(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
