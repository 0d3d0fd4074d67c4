"""Stopping together: every rank asks after each step, and all stop after the same one (departure D76)."""

from __future__ import annotations

import torch

from lit_gpt.parallel import Runtime
from lit_gpt.utils.signals import Signals

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start again with --resume auto


def stop_agreed(runtime: Runtime, signals: Signals) -> bool:
    """Whether any rank was asked to stop, even when the signal reached only some. Collective, on the host."""
    if runtime.world_size == 1:
        return signals.asked
    return bool(runtime.sum(torch.tensor(float(signals.asked))).item())
