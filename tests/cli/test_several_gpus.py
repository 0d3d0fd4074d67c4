"""The benchmark of several GPUs: what is hidden of communication, and what it starts. No timing is asserted."""

from __future__ import annotations

import pytest
from script_module import script_module

overlap = script_module("benchmarks/timing.py").overlap
several_gpus = script_module("benchmarks/several_gpus.py")


def test_overlap_of_spans_drawn_by_hand() -> None:
    """0 1 2 3 4 5 6 7 8 9: products in 0-3 and 6-8, a copy in 2-3; NCCL in 1-4, 3-5 (a second call) and 7-9."""
    spans = [("gemm", 0.0, 3.0), ("gemm", 6.0, 8.0), ("copy", 2.0, 3.0)]
    spans += [("ncclDevKernel_AllGather(args)", 1.0, 4.0), ("ncclDevKernel_AllGather(args)", 3.0, 5.0)]
    spans += [("ncclDevKernel_ReduceScatter", 7.0, 9.0)]
    found = overlap(spans)
    assert (found["span_ms"], found["communication_ms"], found["exposed_ms"], found["idle_ms"]) == (9, 6, 3, 1)
    assert found["collectives"] == {"ncclDevKernel_AllGather": 2, "ncclDevKernel_ReduceScatter": 1}
    assert found["gaps"] == [{"ms": 1, "after": "ncclDevKernel_AllGather(args)", "before": "gemm"}]
    later = [("a", 0.0, 1.0), ("b", 1.5, 4.0), ("inside", 3.2, 3.5), ("c", 6.0, 7.0), ("d", 7.0, 8.0)]
    gaps = [(gap["ms"], gap["after"], gap["before"]) for gap in overlap(later)["gaps"]]
    assert gaps == [(2, "b", "c"), (0.5, "a", "b")]
    many = [("k", float(at * at), float(at * at + 1)) for at in range(9)]
    assert [gap["ms"] for gap in overlap(many)["gaps"]] == [14, 12, 10, 8, 6]


@pytest.mark.parametrize("way, processes", [("alone", 1), ("apart", 3), ("together", 1)])
def test_a_process_for_each_gpu_or_one_torchrun(way: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started = several_gpus.commands(way, 3, "shared", ["--sizes", "8:16"])
    assert len(started) == processes and all("--one" in command for command, _ in started)
    gpus = [extra.get("CUDA_VISIBLE_DEVICES") for _, extra in started]
    assert gpus == ([None] if way == "together" else ["0", "1", "2"][:processes])
    assert ("--nproc_per_node" in started[0][0]) == ("shared" in started[0][0]) == (way == "together")


def test_a_line_has_the_ratio_and_what_was_not_hidden() -> None:
    found = {
        "span_ms": 10.0,
        "communication_ms": 4.0,
        "exposed_ms": 1.5,
        "idle_ms": 0.5,
        "collectives": {"AllGather": 3},
    }
    row = {"tokens_per_sec": 190.0, "first_step_seconds": 7.0, "overlap": found}
    text = several_gpus.line("together", [row], 100.0)
    assert "1.900x" in text and "NCCL 4.0, of which nothing hid 1.5; idle 0.5" in text
    apart = several_gpus.line("apart", [{**row, "overlap": None}] * 2, 100.0)
    assert "3.800x" in apart and "of 190, 190" in apart
