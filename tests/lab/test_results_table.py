"""The table at the end: best first, and which differences are more than the noise of seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import stats

from lit_gpt.lab.results import METRIC, results, verdict
from lit_gpt.lab.rows import Row

LOSSES = {"a": [2.0, 2.02, 1.98], "b": [2.01, 2.03, 1.99], "c": [2.2, 2.22, 2.18]}


def finished(output: Path, losses: dict[str, list[float]], seeds: dict[str, list[int]] | None = None) -> list[Row]:
    """Rows of every setting with seeds 0, 1, ..., or those that are given for it."""
    rows = []
    for setting, values in losses.items():
        for number, value in enumerate(values):
            seed = (seeds or {}).get(setting, range(9))[number]
            row = Row(f"{setting}{number}", {"optimizer": setting, "seed": seed})
            folder = output / row.name / "run"
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"finished": True, "step": 1, METRIC: value}))
            rows.append(row)
    return rows


def test_a_tie_is_a_difference_whose_interval_holds_zero(tmp_path: Path) -> None:
    """Seeds differ. Deviation 0.02 with 6 degrees of freedom; 0.01 is below 3 x 0.02 sqrt(2 / 3), 0.2 not."""
    said = verdict(finished(tmp_path, LOSSES, {"c": [0, 1, 7]}), tmp_path, METRIC)
    assert "lowest: a0, mean 2.0000 of 3 seeds" in said and "seed 0.0200 (6 degrees of freedom)" in said
    assert said.endswith("holds 0: b0.") and "seed by seed" not in said


def test_equal_settings_are_seldom_set_apart(tmp_path: Path) -> None:
    """The interval of each difference alone set some of ten equal settings apart in 56% of studies."""
    rng, apart = np.random.default_rng(0), 0
    for study in range(40):
        losses = {chr(ord("a") + i): rng.normal(2, 0.01, 2).tolist() for i in range(10)}
        said = verdict(finished(tmp_path / str(study), losses, {"a": [7, 8]}), tmp_path / str(study), METRIC)
        tied = said.rpartition("holds 0: ")[2].count(",") + 1 if "holds 0" in said else 0
        apart += tied < 9
        assert "the interval (95% for all settings together)" in said or not tied
    assert apart <= 11, "9% of 40, and room: 3.7 with a deviation of 1.8"


def test_settings_of_the_same_seeds_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """A seed does 0.1 to all runs of it, and b is above a by 0.01 in each, give or take 0.001."""
    seeds, a = [0.0, 0.1, -0.1], [2.0, 2.0, 2.0]
    losses = {"a": a, "b": [2.011, 2.009, 2.01], "c": [2.001, 1.999, 2.0015]}
    shifted = {name: [x + shift for x, shift in zip(of, seeds)] for name, of in losses.items()}
    rows = finished(tmp_path, shifted)
    said = verdict(rows, tmp_path, METRIC)
    gaps = stats.ttest_rel(shifted["b"], shifted["a"])
    assert gaps.pvalue < 0.01, "scipy sees it in the pairs"
    assert "seed by seed" in said and said.endswith("holds 0: c0.") and "(4 degrees of freedom)" in said
    without = verdict(rows[:5] + rows[6:], tmp_path, METRIC)  # a seed of b failed
    assert without.endswith("holds 0: c0, b0.") and "do not share their seeds" in without


def test_runs_that_repeat_a_seed_are_no_pairs(tmp_path: Path) -> None:
    """An axis that is no option of pretrain.py names runs apart that are the same."""
    said = verdict(finished(tmp_path, LOSSES, {name: [5, 5, 6] for name in "abc"}), tmp_path, METRIC)
    assert "seed by seed" not in said and "(6 degrees of freedom)" in said


def test_one_seed_says_nothing_about_noise(tmp_path: Path) -> None:
    rows = finished(tmp_path, {"a": [2.0], "b": [2.1]})
    assert "nobody knows" in verdict(rows, tmp_path, METRIC)
    assert [line.split()[0] for line in results(rows, tmp_path, METRIC).splitlines()] == ["name", "a0", "b0"]
