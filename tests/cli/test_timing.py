"""The clock of the benchmarks, with a clock of its own."""

from __future__ import annotations

import time

import torch
from script_module import script_module

milliseconds = script_module("benchmarks/timing.py").milliseconds


def test_the_median_of_what_is_timed(monkeypatch) -> None:
    """Of five runs of 9, 9, 1, 2 and 4 seconds the first two do not count, nor do 100 seconds before each."""
    now, lengths = [0.0], iter([9, 9, 1, 2, 4])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    found = milliseconds(lambda: wait(next(lengths)), torch.device("cpu"), 3, 2, before=lambda: wait(100))
    assert (found, now[0]) == (2000, 525)
