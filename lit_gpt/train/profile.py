"""A trace of a few steps: where the time goes, kernel by kernel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED = 5  # steps before the trace, in which blocks compile and the allocator's pool grows to its size


class StepProfiler:
    """Profiles `steps` optimizer steps and writes them to `<folder>/profile`; does nothing for 0.

    trace.json.gz opens in ui.perfetto.dev or chrome://tracing; operators.txt is the table.
    """

    def __init__(self, folder: Path, steps: int):
        self.folder, self.profile, self.steps = folder / "profile", None, 0
        if steps:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            plan = schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1)
            self.profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self.profile.start()

    def step(self) -> None:
        """To be called after every optimizer step."""
        if self.profile is not None:
            self.profile.step()
            self.steps += 1

    def close(self) -> None:
        """Stop; what was recorded until now is written."""
        if self.profile is not None:
            self.profile.stop()
            if self.steps <= SKIPPED:
                what = (
                    f"--profile_steps profiles from the sixth step of a start on, and this one ended after {self.steps}"
                )
                warnings.warn(f"{what}: no step was profiled.", stacklevel=2)

    def _write(self, done: Any) -> None:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        try:
            self.folder.mkdir(exist_ok=True)
            done.export_chrome_trace(str(self.folder / "trace.json.gz"))
            (self.folder / "operators.txt").write_text(done.key_averages().table(sort_by=order, row_limit=40))
        except OSError as error:  # no reason to end the run
            warnings.warn(f"{self.folder} cannot be written ({error.strerror}); training goes on.", stacklevel=3)
