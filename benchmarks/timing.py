"""The clock of these benchmarks, but for train_step.py, whose steps do not wait for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def milliseconds(
    run: Callable[[], Any],
    device: torch.device,
    steps: int = 10,
    warmup: int = 2,
    before: Callable[[], Any] = lambda: None,
) -> float:
    """Median of `steps` runs after `warmup`, until the device is done. `before` precedes each and is not timed."""
    times = []
    for _ in range(warmup + steps):
        before()
        start = _now(device)
        run()
        times.append(_now(device) - start)
    return 1e3 * statistics.median(times[warmup:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
