"""What the machine is doing: memory, utilisation, power, temperature, processes. Sampled at log steps only."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from lit_gpt.metrics.throughput import PROCESSES

GIB = 2**30
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def _processes(device: torch.device) -> float:
    import pynvml

    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(device).uuid
    return len(pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")))


# torch asks NVML (the nvidia-ml-py package) and maps CUDA_VISIBLE_DEVICES for us; power is in mW.
_GPU_QUERIES: dict[str, Callable[[torch.device], float]] = {
    "system/gpu_utilization_pct": lambda d: torch.cuda.utilization(d),
    "system/gpu_power_w": lambda d: torch.cuda.power_draw(d) / 1000,
    "system/gpu_temperature_c": lambda d: torch.cuda.temperature(d),
    PROCESSES: _processes,
}


class Hardware:
    """Samples this process and its device.

    Keys: `system/cpu_pct` (100 is one busy core, since the last sample), `system/ram_peak_gib`
    (resident set of this process), and on a GPU `system/gpu_memory_{allocated,reserved,peak}_gib`
    (peak since the last sample) plus, where the driver answers, utilisation, power, temperature, and how many
    processes compute on it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._clock = (time.perf_counter(), time.process_time())
        self._queries = {k: q for k, q in _GPU_QUERIES.items() if device.type == "cuda" and _works(q, device)}

    def metrics(self) -> dict[str, float]:
        """One sample of these numbers, taken without waiting for the device."""
        wall, busy = self._clock
        self._clock = (time.perf_counter(), time.process_time())
        found = {
            "system/cpu_pct": 100 * (self._clock[1] - busy) / max(self._clock[0] - wall, 1e-9),
            "system/ram_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES / GIB,
        }
        if self._device.type == "cuda":
            found |= self._memory() | {key: query(self._device) for key, query in self._queries.items()}
        return found

    def _memory(self) -> dict[str, float]:
        found = {
            "system/gpu_memory_allocated_gib": torch.cuda.memory_allocated(self._device) / GIB,
            "system/gpu_memory_reserved_gib": torch.cuda.memory_reserved(self._device) / GIB,
            "system/gpu_memory_peak_gib": torch.cuda.max_memory_allocated(self._device) / GIB,
        }
        torch.cuda.reset_peak_memory_stats(self._device)
        return found


def _works(query: Callable[[torch.device], float], device: torch.device) -> bool:
    # no nvidia-ml-py, no permission, a MIG slice: each raises a type of its own
    try:
        query(device)
    except Exception:
        return False
    return True
