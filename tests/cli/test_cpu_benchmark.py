"""The benchmark of a CPU runs both sides, and says which one was faster. No timing of either is asserted."""

from __future__ import annotations

import json

import pytest
from script_module import script_module

from lit_gpt.config.command import command_of, exit_code

cpu = script_module("benchmarks/cpu.py")


def test_a_row_for_every_pair(tmp_path, monkeypatch, capsys) -> None:
    calls: list[str] = []
    pair = cpu.Pair(lambda: calls.append("ours"), lambda: calls.append("peer"))
    monkeypatch.setattr(cpu, "ROWS", {"nothing": lambda folder: pair, "other": lambda folder: pair})
    output = tmp_path / "rows.json"
    assert exit_code(command_of(cpu.main), ["--only", "noth", "--seconds", "0", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert row["what"] == "nothing" and row["rounds"] == 3 and row["low"] <= row["ratio"] <= row["high"]
    # alternating, so that neither side is always the first
    assert calls == ["peer", "ours", "ours", "peer"] * 2
    assert "nothing" in capsys.readouterr().out
    assert exit_code(command_of(cpu.main), ["--only", "x"]) != 0
    assert "beginnings of nothing, other" in capsys.readouterr().err


def test_ratios_are_of_pairs() -> None:
    found = cpu.figures([(1.0, 2.0), (10.0, 10.0), (1.0, 3.0)])
    assert (found["ours_s"], found["peer_s"], found["ratio"]) == (1.0, 3.0, 2.0)


@pytest.mark.parametrize(
    "what, sizes",
    [
        ("new_tokens", {"depth": 2, "prompt": 4, "count": 3}),
        ("mamba2", {"depth": 2, "length": 16}),
        ("loss", {"tokens": 8, "width": 8, "vocabulary": 50}),
        ("training", {"vocabulary": 128, "depth": 2, "context": 16}),
    ],
)
def test_both_sides_do_the_same(what, sizes, tmp_path) -> None:
    """Each pair compares what its sides give before it is timed."""
    getattr(cpu, what)(tmp_path, **sizes)
