"""The studies that come with the repository can be planned, and say what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_every_kind_of_study_is_there() -> None:
    expected = (
        "flops data isoflop lr_transfer batch weight_decay moe_sparsity moe_granularity families seed_noise laptop"
    )
    assert {path.stem for path in STUDIES} >= set(expected.split())
