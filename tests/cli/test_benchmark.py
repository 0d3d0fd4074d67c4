"""The benchmark measures the trainer it says it measures. No timing is asserted."""

from __future__ import annotations

import json

from script_module import script_module

from lit_gpt.config.command import command_of, exit_code

train_step = script_module("benchmarks/train_step.py")

TINY = {"ar": 16}


def test_a_row_for_every_size_and_recipe(tmp_path, capsys) -> None:
    output = tmp_path / "rows.json"
    words = ["--sizes", "2:1", "--contexts", "32", "--steps", "3", "--warmup", "0"]
    words += ["--options", json.dumps(TINY), "--output", str(output), "--profile", "5", "--recipes", "bf16,tensorwise"]
    assert exit_code(command_of(train_step.main), words) == 0
    row, scaled = json.loads(output.read_text())
    assert (row["recipe"], scaled["recipe"], scaled["options"]["fp8"]) == ("bf16", "tensorwise", True)
    assert (row["depth"], row["micro_bsz"], row["steps"], row["options"]) == (2, 1, 3, TINY)
    # Two tables of 32000 x 32; per layer q and out 2 x 32 x 32, k and v 2 x 16 x 32, FFN 3 x 32 x 128, two norms.
    assert row["parameters"] == 2 * 32000 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 128 + 2 * 32) + 32
    assert row["quartiles"][0] <= row["tokens_per_sec"] <= row["quartiles"][1]
    shares = [kernel["share"] for kernel in row["profile"]]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert row["tokens_per_sec"] > 0 and "transformer d2" in capsys.readouterr().out
