"""The clock of these benchmarks, but for train_step.py, whose steps do not wait for the device; and a profile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


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


def where(run: Callable[[], Any], rows: int = 12) -> list[dict[str, Any]]:
    """The kernels, or on a CPU the operations, with the most time in one run, and their share of it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    on_gpu = torch.cuda.is_available()  # there the kernels alone: operations would count their time again
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [e for e in profiler.key_averages() if not on_gpu or e.device_type == DeviceType.CUDA]
    events = [e for e in events if not e.key.startswith("Optimizer.")]  # the span of a step, kernels and gaps
    events.sort(key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events)
    return [
        {"kernel": e.key[:100], "ms": getattr(e, key) / 1e3, "share": getattr(e, key) / total} for e in events[:rows]
    ]
