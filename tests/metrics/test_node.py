"""The monitor of a node, against /proc and a made-up NVML."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lit_gpt.metrics import node
from lit_gpt.metrics.node import Node

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class FakeNvml(SimpleNamespace):
    """Two GPUs: the first answers everything, the second has no power meter and an unreadable clock."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1

    def __init__(self) -> None:
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: 2,
            nvmlDeviceGetHandleByIndex=lambda i: i,
            nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=90 + gpu),
            nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=(gpu + 1) * 2**30),
            nvmlDeviceGetPowerUsage=lambda gpu: [695_500][gpu],
            nvmlDeviceGetTemperature=lambda gpu, sensor: 60 + gpu + 100 * sensor,
            nvmlDeviceGetClockInfo=lambda gpu, kind: [1980][gpu] + kind - 1,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: [0x4, 0x20][gpu],
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_every_key_is_explained():
    page = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
    keys = {f"gpu<i>/{name}" for name in node._GPU_QUERIES} | {*node._cpu(), *node._memory()}
    keys |= {f"{name}_mib_per_sec" for name in node._bytes_moved()}
    assert [key for key in keys if f"`{key}`" not in page] == []


def of_gpus(found: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in found.items() if "/gpu" in key}


def test_every_gpu_and_what_it_cannot_say_is_left_out(tmp_path, monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    watch = Node(tmp_path, gpus=True)
    clock.seconds += 10
    assert of_gpus(watch.metrics()) == {
        "monitor/gpu0/utilization_pct": 90,
        "monitor/gpu0/memory_used_gib": 1,
        "monitor/gpu0/power_w": 695.5,
        "monitor/gpu0/temperature_c": 60,
        "monitor/gpu0/sm_clock_mhz": 1980,
        "monitor/gpu0/power_capped": 1,
        "monitor/gpu0/slowed_down": 0,
        "monitor/gpu1/utilization_pct": 91,
        "monitor/gpu1/memory_used_gib": 2,
        "monitor/gpu1/temperature_c": 61,
        "monitor/gpu1/power_capped": 0,
        "monitor/gpu1/slowed_down": 1,
    }


@pytest.mark.parametrize("module", [None, SimpleNamespace(nvmlInit=lambda: 1 / 0)], ids=["absent", "no driver"])
def test_no_nvml_is_no_reason_to_fail(tmp_path, monkeypatch, clock, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    watch = Node(tmp_path, gpus=True)
    clock.seconds += 10
    found = watch.metrics()
    assert found and not of_gpus(found)


@LINUX
def test_the_host_is_that_of_proc(tmp_path, clock):
    watch = Node(tmp_path, gpus=False)
    clock.seconds += 10
    found = watch.metrics()
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
    assert found["monitor/host_memory_available_gib"] == pytest.approx(memory["MemAvailable"], rel=0.1, abs=0.5)
    total = found["monitor/host_memory_available_gib"] + found["monitor/host_memory_used_gib"]
    assert total == pytest.approx(memory["MemTotal"], rel=1e-3)
    disk = os.statvfs(tmp_path)
    assert found["monitor/disk_free_gib"] == pytest.approx(disk.f_bavail * disk.f_frsize / 2**30, rel=0.1, abs=1)
    assert 0 <= found["monitor/host_cpu_pct"] <= 100


@LINUX
def test_the_network_is_that_of_proc_without_loopback():
    lines = [line.split(":") for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    received = sum(int(cells.split()[0]) for name, cells in lines if name.strip() != "lo")
    assert node._bytes_moved()["network_received"] == pytest.approx(received, rel=0.01, abs=2**20)


def test_rates_are_means_since_the_sample_before(tmp_path, monkeypatch, clock):
    moved = SimpleNamespace(bytes_recv=0, bytes_sent=5, read_bytes=0, write_bytes=0)
    loopback = SimpleNamespace(bytes_recv=10**15, bytes_sent=10**15)
    monkeypatch.setattr(psutil, "net_io_counters", lambda pernic: {"eth0": moved, "lo": loopback})
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: moved)
    watch = Node(tmp_path, gpus=False)
    for seconds, mib in ((4, 8), (2, 2)):
        clock.seconds += seconds
        moved.bytes_recv += mib * 2**20
        moved.write_bytes += 3 * mib * 2**20
        found = watch.metrics()
        rates = {key: value for key, value in found.items() if key.endswith("_per_sec")}
        assert rates == {
            "monitor/network_received_mib_per_sec": mib / seconds,
            "monitor/network_sent_mib_per_sec": 0,
            "monitor/disk_read_mib_per_sec": 0,
            "monitor/disk_write_mib_per_sec": 3 * mib / seconds,
        }
    clock.seconds += 0.5
    assert watch.metrics() == {}


def test_a_host_that_cannot_be_read_is_left_out(tmp_path, monkeypatch, clock):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a container without /proc/diskstats")

    monkeypatch.setattr(psutil, "disk_io_counters", fails)
    monkeypatch.setattr(psutil, "virtual_memory", fails)
    watch = Node(tmp_path, gpus=False)
    clock.seconds += 10
    names = {key.removeprefix("monitor/") for key in watch.metrics()}
    assert names == {"host_cpu_pct", "disk_free_gib", "network_received_mib_per_sec", "network_sent_mib_per_sec"}
