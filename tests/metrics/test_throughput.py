"""Rates, MFU and the time budget with a clock the test moves by hand."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from lit_gpt.metrics import hardware
from lit_gpt.metrics.throughput import Throughput, peak_flops, typical


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


WORK = {"tokens": 1000, "samples": 4, "batches": 2, "flops": 6e6}


def run(meter: Throughput, clock: Clock, seconds: list[float]) -> None:
    for duration in seconds:
        clock.now += duration
        meter.step(**WORK)


def test_first_step_does_not_count_for_rates():
    clock = Clock()
    meter = Throughput(2, 1e6, clock=clock)
    run(meter, clock, [60.0])
    assert not any(key.startswith("throughput/") for key in meter.metrics())
    run(meter, clock, [2.0, 4.0])
    found = meter.metrics()
    assert found["throughput/tokens_per_sec"] == pytest.approx(2000 / 6)
    assert found["throughput/device/tokens_per_sec"] == pytest.approx(1000 / 6)
    assert found["throughput/samples_per_sec"] == pytest.approx(8 / 6)
    assert found["throughput/batches_per_sec"] == pytest.approx(4 / 6)
    assert found["throughput/device/flops_per_sec"] == pytest.approx(1e6)
    assert found["throughput/device/mfu"] == pytest.approx(1.0)
    assert (found["total_tokens"], found["samples"]) == (3000, 12)
    assert found["time/train"] == found["time/total"] == pytest.approx(66.0)


def test_rates_forget_what_left_the_window():
    clock = Clock()
    meter = Throughput(1, None, window=2, clock=clock)
    run(meter, clock, [1.0, 50.0, 2.0, 2.0])
    assert meter.metrics()["throughput/tokens_per_sec"] == pytest.approx(500)
    assert "throughput/device/mfu" not in meter.metrics()


def test_validation_and_checkpoints_are_not_training_time():
    clock = Clock()
    meter = Throughput(1, None, clock=clock)
    run(meter, clock, [1.0, 1.0])
    for kind, seconds in (("val", 30.0), ("checkpoint", 7.0), ("val", 10.0)):
        meter.pause(kind)
        clock.now += seconds
        meter.resume()
    run(meter, clock, [1.0])
    found = meter.metrics()
    assert found["throughput/tokens_per_sec"] == pytest.approx(1000)
    assert [found[f"time/{k}"] for k in ("train", "val", "checkpoint", "total")] == [3, 40, 7, 50]


def test_resumed_run_goes_on_counting_but_measures_anew():
    clock = Clock()
    meter = Throughput(1, None, clock=clock)
    run(meter, clock, [1.0, 1.0])
    saved = meter.state_dict()
    later = Throughput(1, None, clock=clock)
    clock.now += 5.0  # set-up, before the checkpoint is read
    later.load_state_dict(saved)
    run(later, clock, [1.0])
    found = later.metrics()
    assert (found["total_tokens"], found["time/train"]) == (3000, 3.0)
    assert "throughput/tokens_per_sec" not in found


def test_state_of_a_meter_is_a_copy():
    clock = Clock()
    meter = Throughput(1, None, clock=clock)
    saved = meter.state_dict()
    run(meter, clock, [1.0])
    assert saved["total"]["tokens"] == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("cpu", None),
    ],
)
def test_peaks(name: str, peak: float | None):
    assert peak_flops(name) == peak


def test_a_clock_that_stands_still_is_no_error():
    meter = Throughput(1, 1.0, clock=lambda: 0.0)
    meter.step(**WORK)
    meter.step(**WORK)
    assert math.isfinite(meter.metrics()["throughput/tokens_per_sec"])


def line(tokens: float, seconds: float, rate: float | None = None, **more: float) -> dict[str, float | None]:
    """A row of metrics.jsonl. rate: what it says of the steps before it, twice as many samples and half an MFU."""
    rates = {} if rate is None else {"throughput/tokens_per_sec": rate, "throughput/samples_per_sec": 2 * rate,
                                     "throughput/device/mfu": rate / 2}  # fmt: skip
    return {"step": tokens, "total_tokens": tokens, "time/train": seconds, **rates, **more}


def test_the_typical_speed_is_that_of_the_middle_stretch_between_lines():
    """One stretch has a pause, whose line and the ones after it have a low mean; the first step compiles."""
    rows = [line(1, 50), line(11, 51, 10), line(21, 52, 10), line(31, 92, 0.7), line(41, 93, 0.9), line(51, 94.25, 8),
            line(61, 95.25, 9)]  # fmt: skip
    found = typical(rows)
    assert found == pytest.approx(
        {"throughput/tokens_per_sec": 10, "throughput/samples_per_sec": 20, "throughput/device/mfu": 5}
    )


def test_stretches_beside_another_process_count_only_where_there_are_no_others():
    two, one = {"system/gpu_processes": 2.0}, {"system/gpu_processes": 1.0}
    shared = [line(10, 1, 10, **two), line(20, 3, 10, **two), line(30, 5, 10, **two)]  # 5 a second
    alone = [line(40, 8, 10, **one), line(50, 9, 10, **one)]
    assert typical(shared + alone)["throughput/tokens_per_sec"] == pytest.approx(10)
    assert typical(shared)["throughput/tokens_per_sec"] == pytest.approx(5)


def test_one_line_with_a_speed_is_all_there_is_and_none_is_nothing():
    assert typical([line(1, 2), line(2, 3, 7)])["throughput/tokens_per_sec"] == 7
    assert typical([line(1, 2)]) == {} == typical([])


def test_processes_on_the_gpu_are_those_that_the_driver_names(monkeypatch: pytest.MonkeyPatch):
    """By the identity of the device, since CUDA_VISIBLE_DEVICES numbers it anew; without a driver not at all."""
    asked: list[str] = []
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: ["this", "another"],
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    assert hardware._processes(torch.device("cuda")) == 2 and asked == ["GPU-1-2"]
    assert hardware._works(hardware._processes, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert not hardware._works(hardware._processes, torch.device("cuda"))
