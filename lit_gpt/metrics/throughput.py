"""Speed of training: window averages, model FLOPs utilisation, and where the time went.

Model FLOPs utilisation (MFU) is model FLOPs per second over the device's peak. Which FLOPs are the model's is a
convention, and there are two:

`throughput/device/mfu` counts what the layers do: matrix products forward and backward, attention over the keys that
a query sees (the causal half; windows as windows; a row as one document, or as documents of --doc_len tokens),
convolutions and states of recurrent layers; no recomputation.

`throughput/device/mfu_palm` counts 6 N + 12 L H Q T per token (arXiv:2204.02311, appendix B): attention over all T
tokens, in every layer that has it, and nothing for states. Most published figures are of this kind. It is larger, by
11% for a transformer of d16 at 4,096 tokens. How ArchScale counts is departure D79.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

SPEED, PROCESSES = "throughput/tokens_per_sec", "system/gpu_processes"
CONVENTION = (
    "mfu: matrix products forward and backward, attention over the keys that a query sees (causal half, windows), no "
    "recomputation; mfu_palm: 6 N + 12 L H Q T per token, attention over all tokens (arXiv:2204.02311, appendix B)"
)
# Dense bf16 (fp16 where a card has no bf16) FLOP/s of the makers' data sheets, without
# sparsity. First row wins whose words all occur in the device's name. 989e12 for the SXM
# Hopper parts is the figure published MFU numbers are computed with.
_PEAKS: tuple[tuple[str, float], ...] = (
    ("gb300", 2.5e15),
    ("b300", 2.25e15),
    ("gb200", 2.5e15),
    ("b200", 2.25e15),
    ("b100", 1.8e15),
    ("gh200", 989e12),
    ("h200 nvl", 835.5e12),
    ("h200", 989e12),
    ("h100 nvl", 835.5e12),
    ("h100 pcie", 756.5e12),
    ("h100", 989e12),
    ("mi300x", 1307.4e12),
    ("a100", 312e12),
    ("l40s", 362.05e12),
    ("l40", 181.05e12),
    ("l4", 121e12),
    ("rtx 6000 ada", 364.25e12),
    ("rtx 4090", 165.2e12),
    ("rtx 3090", 71e12),
    ("rtx a6000", 154.8e12),
    ("a10g", 70e12),
    ("a10", 125e12),
    ("v100 pcie", 112e12),
    ("v100", 125e12),
    ("quadro rtx 5000", 89.2e12),
    ("t4", 65e12),
)


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device by its torch.cuda name; None when unknown (CPU, MIG slice)."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if "mig" in words:  # a slice of the card, whose share the name does not state reliably
        return None
    return next((peak for key, peak in _PEAKS if words.issuperset(key.split())), None)


def typical(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`throughput/*` of a whole run at its typical speed, the median over the stretches between its log lines.

    rows: of metrics.jsonl. A stretch during which another process was on the GPU, such as the next run of a study
    (`ladder.py --overlap`), counts only where every stretch is of that kind. A pause moves one stretch, and so not the
    median. Nothing where no line has a speed.
    """
    lines = [row for row in rows if row.get(SPEED)]
    if not lines:
        return {}
    alone, shared = [], []
    for before, after in pairwise(lines):
        tokens, seconds = (after[key] - before[key] for key in ("total_tokens", "time/train"))
        if tokens > 0 and seconds > 0:
            kind = shared if max(before.get(PROCESSES, 1), after.get(PROCESSES, 1)) > 1 else alone
            kind.append(tokens / seconds)
    last = lines[-1]
    factor = statistics.median(alone or shared or [last[SPEED]]) / last[SPEED]  # all rates are multiples of this one
    return {key: value * factor for key, value in last.items() if key.startswith("throughput/") and value is not None}


class Throughput:
    """Counts work and time; all counts are global, over every device.

    world_size: number of devices. peak: FLOP/s of one device, None leaves the MFU out. palm: FLOPs by PaLM's
    convention over those of `step`, 0 leaves that MFU out.
    window: optimizer steps that rates are averaged over. clock: seconds, monotonic.

    Rates start at the end of the first step, which compiles kernels. The clock starts at
    construction. Time between pause() and resume() counts for neither rates nor time/train.
    """

    def __init__(
        self,
        world_size: int,
        peak: float | None,
        *,
        palm: float = 0.0,
        window: int = 50,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.world_size, self.peak, self.palm, self.clock = world_size, peak, palm, clock
        self._seconds = {"train": 0.0, "val": 0.0}
        self._kind, self._since = "train", clock()
        self._total: dict[str, float] = {"batches": 0, "samples": 0, "tokens": 0, "flops": 0}
        self._marks: deque[tuple[float, dict[str, float]]] = deque(maxlen=window + 1)  # a rate is between two

    def step(self, *, tokens: float, samples: float, batches: float, flops: float) -> None:
        """One optimizer step is done; how much work it was, summed over all devices.

        batches: micro-batches. flops: model FLOPs of forward and backward, without recomputation.
        """
        work = {"batches": batches, "samples": samples, "tokens": tokens, "flops": flops}
        self._total = {key: self._total[key] + amount for key, amount in work.items()}
        self._switch(self._kind)
        self._marks.append((self._seconds["train"], self._total))

    def pause(self, kind: str = "val") -> None:
        """Book the time from here to resume() under time/<kind>: "val", "checkpoint", ..."""
        assert self._kind == "train", "pause() within a pause"
        self._switch(kind)

    def resume(self) -> None:
        """Training goes on: the time from here counts as training."""
        self._switch("train")

    def metrics(self) -> dict[str, float]:
        """`throughput/*`, `throughput/device/*`, `time/*` (seconds), `total_tokens`, `samples`.

        No rates before the second step; no MFU without a peak. Both conventions of it are at the top of this file.
        """
        self._switch(self._kind)
        found = {f"time/{kind}": seconds for kind, seconds in self._seconds.items()}
        found["time/total"] = sum(self._seconds.values())
        found |= {"total_tokens": self._total["tokens"], "samples": self._total["samples"]}
        return found | self._rates()

    def _rates(self) -> dict[str, float]:
        if len(self._marks) < 2:
            return {}
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        elapsed = max(end - start, 1e-9)  # a coarse clock may not have moved
        rates: dict[str, float] = {}
        for key in after:
            rate = (after[key] - before[key]) / elapsed
            rates[f"throughput/{key}_per_sec"] = rate
            rates[f"throughput/device/{key}_per_sec"] = rate / self.world_size
        if self.peak:
            rates["throughput/device/mfu"] = rates["throughput/device/flops_per_sec"] / self.peak
            if self.palm:
                rates["throughput/device/mfu_palm"] = rates["throughput/device/mfu"] * self.palm
        return rates

    def _switch(self, kind: str) -> None:
        now = self.clock()
        self._seconds[self._kind] = self._seconds.get(self._kind, 0.0) + now - self._since
        self._kind, self._since = kind, now

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that let a resumed run go on counting."""
        self._switch(self._kind)
        return {"seconds": dict(self._seconds), "total": dict(self._total)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the totals of an earlier run; rates start anew."""
        self._switch("train")
        # Added to 0, so that what is no number is an error here and not at a later step.
        self._seconds = {key: 0.0 + state["seconds"][key] for key in self._seconds | state["seconds"]}
        self._total = {key: 0 + state["total"][key] for key in self._total}
        self._marks.clear()
