"""Which runs are repeats of each other, by kind, and their noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lab_runs import SUMMARY, make_run

from lit_gpt.lab.repeats import groups_of, noise_beside, noise_of, varied
from lit_gpt.lab.runs import Run, read_runs


def runs_of(folder: Path, seeds: dict[tuple[int, int], float], **plan: Any) -> list[Run]:
    """A run for each (seed, data seed), with this loss."""
    for (seed, order), loss in seeds.items():
        summary = {**SUMMARY, "metric/val_loss@1x": loss}
        make_run(
            folder / f"{seed}_{order}/run",
            plan={"seed": seed, "data_seed": order, **plan},
            summary=summary,
            row={"name": f"{folder.name}_{seed}_{order}"},
            out_dir=str(folder / f"{seed}_{order}"),
        )
    return read_runs([folder])


LOSSES = {(1, 1): 2.0, (2, 1): 2.2, (1, 2): 2.6, (2, 2): 2.8}


def test_kinds_of_noise(tmp_path: Path) -> None:
    """Another start is worth 0.2, another order 0.6, and both together 0.8: two values differ by s sqrt(2)."""
    runs = runs_of(tmp_path / "a", LOSSES)
    for kind, gap, free in (("weights", 0.2, 2), ("orders", 0.6, 2), ("both", 0.8, 1)):
        found = noise_of(runs, kind=kind)
        assert found.noise.deviation == pytest.approx(gap / math.sqrt(2)) and found.noise.free == free
        assert all(len(group) == 2 for group in found.groups)


def test_noise_of_runs_that_share_their_seeds(tmp_path: Path) -> None:
    """What a seed does to both configurations is none of it; a gap of pairs of 0.1 or 0.3 is: 0.2 apart, by s 2."""
    runs_of(tmp_path / "a", {(1, 1): 2.0, (2, 2): 3.0})
    runs_of(tmp_path / "b", {(1, 1): 5.1, (2, 2): 6.3}, depth=3)
    runs_of(tmp_path / "c", {(1, 1): 9.0}, depth=4)  # says nothing
    found = noise_beside(read_runs([tmp_path]))
    assert found.deviation == pytest.approx(0.1) and found.free == 1
    assert not noise_beside(read_runs([tmp_path / "c"])).free


def test_other_plans_and_other_data_are_no_repeats(tmp_path: Path) -> None:
    runs_of(tmp_path / "a", {(1, 1): 2.0, (2, 2): 3.0})
    runs_of(tmp_path / "b", {(1, 1): 5.0, (2, 2): 6.0}, depth=3)
    make_run(tmp_path / "c", plan={"seed": 9, "data_seed": 9}, sources={"train": 100})
    runs = read_runs([tmp_path])
    groups = groups_of(runs)
    assert sorted(map(len, groups)) == [1, 2, 2]
    assert noise_of(runs).noise.free == 2 and noise_of(runs).noise.deviation == pytest.approx(math.sqrt(0.5))


def test_unfinished_runs_and_missing_values_say_nothing(tmp_path: Path) -> None:
    runs_of(tmp_path / "a", {(1, 1): 2.0, (2, 2): 3.0})
    make_run(tmp_path / "cut", plan={"seed": 3, "data_seed": 3}, summary={**SUMMARY, "finished": False})
    make_run(tmp_path / "none", plan={"seed": 4, "data_seed": 4}, summary={"finished": True})
    assert noise_of(read_runs([tmp_path])).noise.free == 1


def test_lines_of_a_table_are_repeats_by_what_they_say(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("depth,seed,loss,family\n8,1,2.0,a\n8,2,2.2,a\n16,1,1.0,a\n8,1,3.0,b\n")
    groups = groups_of(read_runs([table]))
    assert sorted(map(len, groups)) == [1, 1, 2]
    assert noise_of(read_runs([table])).noise.deviation == pytest.approx(0.2 / math.sqrt(2))


def test_what_varies(tmp_path: Path) -> None:
    make_run(tmp_path / "a", optimizer="lion", out_dir="x")
    make_run(tmp_path / "b", optimizer="lion", out_dir="y", note=[1])
    assert varied(read_runs([tmp_path])) == ["note"]
    assert varied(read_runs([tmp_path]), but=()) == ["out_dir", "note"]
