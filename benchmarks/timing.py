"""The clock of these benchmarks, but for train_step.py, whose steps do not wait for the device; and a profile."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Spans that the profiler shows beside the kernels inside them: of an optimizer, of FSDP2, of torch.distributed.
ANNOTATIONS = ("Optimizer.", "FSDP::", "nccl:", "ProfilerStep")
GAPS = 5  # of the longest


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
    return _most(_profiled(run), rows)


def where_and_overlap(run: Callable[[], Any], rows: int = 12) -> dict[str, Any]:
    """{"profile": what `where` gives, "overlap": what `overlap` gives, with a GPU} of one run."""
    profiler = _profiled(run)
    events = [e for e in profiler.events() or [] if e.device_type == DeviceType.CUDA and not _is_span(e, e.name)]
    spans = [(e.name, e.time_range.start / 1e3, e.time_range.end / 1e3) for e in events]
    return {"profile": _most(profiler, rows), **({"overlap": overlap(spans)} if spans else {})}


def overlap(spans: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """How much of communication is hidden behind other kernels, of (name, begin, end) in milliseconds of one device.

    span: from the first begin to the last end. communication: in which a kernel of NCCL ran. exposed: of that, in
    which no other kernel ran. idle: in which none ran. gaps: the longest of these times, with the kernels around them.
    collectives: name -> number of calls.
    """
    nccl = _union([(a, b) for name, a, b in spans if "nccl" in name.lower()])
    rest = _union([(a, b) for name, a, b in spans if "nccl" not in name.lower()])
    both = _union([*nccl, *rest])
    length = max(b for _, b in both) - min(a for a, _ in both)
    counts = Counter(name.partition("(")[0][:60] for name, _, _ in spans if "nccl" in name.lower())
    return {
        "span_ms": length,
        "communication_ms": _length(nccl),
        "exposed_ms": _length(both) - _length(rest),
        "idle_ms": length - _length(both),
        "gaps": _gaps(spans)[:GAPS],
        "collectives": dict(counts),
    }


def _gaps(spans: Sequence[tuple[str, float, float]]) -> list[dict[str, Any]]:
    """Times in which no kernel ran, the longest first: {"ms", "after": a kernel's name, "before"}."""
    (last, _, end), *rest = sorted(spans, key=lambda span: span[1])
    gaps = []
    for name, begin, until in rest:
        if begin > end:
            gaps.append({"ms": begin - end, "after": last[:60], "before": name[:60]})
        if until > end:
            last, end = name, until
    return sorted(gaps, key=lambda gap: -gap["ms"])


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times as spans that do not touch, in order."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _length(spans: Sequence[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in spans)


def _is_span(event: Any, name: str) -> bool:
    return getattr(event, "is_user_annotation", False) or name.startswith(ANNOTATIONS)


def _profiled(run: Callable[[], Any]) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return profiler


def _most(profiler: profile, rows: int) -> list[dict[str, Any]]:
    on_gpu = torch.cuda.is_available()  # there the kernels alone: operations would count their time again
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [e for e in profiler.key_averages() if not on_gpu or e.device_type == DeviceType.CUDA]
    events = [e for e in events if not _is_span(e, e.key)]
    events.sort(key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events)
    return [
        {"kernel": e.key[:100], "ms": getattr(e, key) / 1e3, "share": getattr(e, key) / total} for e in events[:rows]
    ]
