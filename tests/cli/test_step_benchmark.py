"""The benchmark of optimizer steps runs and accounts for what it times. No timing is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_module import script_module

optimizer_step = script_module("benchmarks/optimizer_step.py")


def test_a_row_for_every_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    options = {"ar": 32, "vocab_size": 64, "ctx_len": 32, "total_bsz": 32, "optimizer_args": {"ns_steps": 1}}
    optimizer_step.main(
        sizes="1:1",
        optimizers="muonh,lion",
        states="fp32,int8",
        steps=1,
        warmup=0,
        tokens_per_sec=1e6,
        batches=[10**6],
        output=str(output),
        options=options,
    )
    rows = json.loads(output.read_text())
    kinds = [("adamw", "fp32"), ("adamw", "int8"), *((name, s) for name in ("muonh", "lion") for s in ("fp32", "int8"))]
    assert [(row["optimizer"], row["state"]) for row in rows] == kinds
    adamw, muonh = (rows[i]["step_ms"] / 1e3 for i in (0, 2))
    assert rows[2]["overhead"]["1000000"] == pytest.approx((muonh - adamw) / (1 + adamw))
    assert capsys.readouterr().out.count("transformer d1") == 6


def test_a_state_that_an_optimizer_has_not() -> None:
    assert optimizer_step.kinds(["torch_muon", "adamw"], ["int8"]) == [("adamw", "fp32"), ("adamw", "int8")]
