"""The studies that come with the repository can be planned, and say what they are for."""

from __future__ import annotations

import runpy
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from lit_gpt.architectures import baseline
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.lab.planning import plan_rows
from lit_gpt.lab.study import read_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "launch_scripts/studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_it_plans(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data, so that the vocabulary is the family's; of long studies every so many rows."""
    monkeypatch.chdir(ROOT)
    study = read_study(path, {})
    plans = plan_rows(study.rows[:: len(study.rows) // 3])
    assert study.question.endswith("?") and len(study.rows) > 2
    assert all(p.tokens > 0 and p.flops > 0 for p in plans)
    assert not path.stem.startswith("baseline") or not any(p.disk for p in plans), "tens of short runs keep nothing"


@pytest.mark.parametrize(("part", "start"), [("open_gates", "gate"), ("small_up", "up")])
def test_a_part_changes_one_start_at_any_depth(part: str, start: str) -> None:
    """What the family starts by its depth stays."""
    build = runpy.run_path(str(ROOT / f"launch_scripts/studies/baseline_parts/baseline_{part}.py"))["build"]
    changed, family = (asdict(make(12, Shape("baseline")).starts) for make in (build, baseline.build))
    assert {key for key in family if changed[key] != family[key]} == {start}


def test_every_kind_of_study_is_there() -> None:
    expected = (
        "flops data isoflop lr_transfer batch weight_decay moe_sparsity moe_granularity families seed_noise laptop"
    )
    assert {path.stem for path in STUDIES} >= set(expected.split())


def test_losses_in_8_bits_have_intervals() -> None:
    """With one seed of each idea plots/plot_ablation.py could not say what is noise."""
    study = read_study(ROOT / "launch_scripts/studies/fp8_loss.yaml", {})
    assert set(Counter(row.name.rpartition("_s")[0] for row in study.rows).values()) == {2}
