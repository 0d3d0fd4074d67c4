"""What the whole node is doing: every GPU, the host's CPU, memory, disk and network. Sampled at log steps only.

The keys, all below `monitor/`, are explained in docs/troubleshooting.md. GPUs are counted as nvidia-smi counts
them. Numbers "per second" are means since the sample before. What cannot be read is left out: without nvidia-ml-py all
of `gpu<i>/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

GIB, MIB = 2**30, 2**20
SHORTEST = 1.0  # seconds between two samples; shorter ones cost more than they say (psutil's CPU share is noise)

# Bits of NVML's nvmlClocksThrottleReasons (docs.nvidia.com/deploy/nvml-api).
POWER_CAP = 0x4
SLOWDOWNS = 0x8 | 0x20 | 0x40 | 0x80  # hardware; heat, by software and by hardware; power brake

# (NVML, handle of a GPU) -> value
_GPU_QUERIES: dict[str, Callable[[Any, Any], float]] = {
    "utilization_pct": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "memory_used_gib": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / GIB,
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "power_capped": lambda nvml, gpu: _any(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu), POWER_CAP),
    "slowed_down": lambda nvml, gpu: _any(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu), SLOWDOWNS),
}


class Node:
    """Samples the node that this process runs on; build it on one process of a run.

    folder: the run folder, which must exist. gpus: look at those too. Nothing here raises.
    """

    def __init__(self, folder: Path, gpus: bool):
        self._folder = folder
        self._nvml, self._gpus = _find_gpus() if gpus else (None, [])
        self._time, self._bytes = time.monotonic(), _read(_bytes_moved)
        _read(_cpu)  # psutil counts from the call before

    def metrics(self) -> dict[str, float]:
        """One sample by the keys of this file; nothing where the last one is less than a second old."""
        now = time.monotonic()
        if now - self._time < SHORTEST:
            return {}
        found = _read(_cpu) | _read(_memory) | _read(self._free) | self._rates(now)
        for i, gpu in enumerate(self._gpus):
            for name, query in _GPU_QUERIES.items():
                with suppress(Exception):
                    found[f"gpu{i}/{name}"] = float(query(self._nvml, gpu))
        return {f"monitor/{name}": value for name, value in found.items()}

    def _free(self) -> dict[str, float]:
        return {"disk_free_gib": psutil.disk_usage(str(self._folder)).free / GIB}

    def _rates(self, now: float) -> dict[str, float]:
        moved, before, seconds = _read(_bytes_moved), self._bytes, now - self._time
        self._time, self._bytes = now, moved
        return {f"{name}_mib_per_sec": (moved[name] - before[name]) / MIB / seconds for name in moved if name in before}


def _read(sample: Callable[[], dict[str, float]]) -> dict[str, float]:
    """A sample, or nothing where it fails: drivers and containers fail in ways of their own, and training goes on."""
    try:
        return sample()
    except Exception:
        return {}


def _cpu() -> dict[str, float]:
    return {"host_cpu_pct": psutil.cpu_percent(None)}


def _memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "host_memory_used_gib": (memory.total - memory.available) / GIB,
        "host_memory_available_gib": memory.available / GIB,
    }


def _bytes_moved() -> dict[str, float]:
    """Since the host started."""
    network = [n for name, n in psutil.net_io_counters(pernic=True).items() if name not in ("lo", "lo0")]
    found: dict[str, float] = {
        "network_received": sum(n.bytes_recv for n in network),
        "network_sent": sum(n.bytes_sent for n in network),
    }
    with suppress(Exception):  # none in some containers
        disks: Any = psutil.disk_io_counters()
        found |= {"disk_read": disks.read_bytes, "disk_write": disks.write_bytes}
    return found


def _any(reasons: int, bits: int) -> float:
    return float(bool(reasons & bits))


def _find_gpus() -> tuple[Any, list[Any]]:
    """NVML and the handle of every GPU; none without nvidia-ml-py or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:
        return None, []
