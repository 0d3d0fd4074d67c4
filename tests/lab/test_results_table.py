"""The table at the end: best first, and which differences are more than the noise of seeds."""

from __future__ import annotations

import json
from pathlib import Path

from lit_gpt.lab.results import METRIC, results, verdict
from lit_gpt.lab.rows import Row

LOSSES = {"a": [2.0, 2.02, 1.98], "b": [2.01, 2.03, 1.99], "c": [2.2, 2.22, 2.18]}


def finished(output: Path, losses: dict[str, list[float]]) -> list[Row]:
    rows = []
    for setting, values in losses.items():
        for seed, value in enumerate(values):
            row = Row(f"{setting}{seed}", {"optimizer": setting, "seed": seed})
            folder = output / row.name / "run"
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"finished": True, "step": 1, METRIC: value}))
            rows.append(row)
    return rows


def test_a_tie_is_a_difference_below_two_standard_errors(tmp_path: Path) -> None:
    """Standard deviation 0.02 with 6 degrees of freedom; 0.01 is below 2 x 0.02 x sqrt(2 / 3), 0.2 is not."""
    said = verdict(finished(tmp_path, LOSSES), tmp_path, METRIC)
    assert "lowest: a0, mean 2.0000 of 3 seeds" in said and "seed 0.0200 (6 degrees of freedom)" in said
    assert said.endswith("two standard errors: b0.")


def test_one_seed_says_nothing_about_noise(tmp_path: Path) -> None:
    rows = finished(tmp_path, {"a": [2.0], "b": [2.1]})
    assert "nobody knows" in verdict(rows, tmp_path, METRIC)
    assert [line.split()[0] for line in results(rows, tmp_path, METRIC).splitlines()] == ["name", "a0", "b0"]
