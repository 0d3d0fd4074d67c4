"""docs/fits.md has every law, and the table of coverage is the measured one."""

from __future__ import annotations

import json
from pathlib import Path

from script_module import script_module

from lit_gpt.scaling.laws import LAWS, law_named

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fits.md").read_text()
MEASURED = json.loads((ROOT / "docs" / "benchmarks" / "coverage.json").read_text())


def test_every_law_has_a_section_and_a_command():
    for name in LAWS.names():
        section = PAGE.split(f"\n### {name}\n")[1].split("\n##")[0]
        assert f"--law {name}" in section, name


def test_the_table_is_the_measured_one():
    coverage = script_module("benchmarks/coverage.py")
    assert coverage.table(MEASURED["laws"]) in PAGE
    assert set(MEASURED["laws"]) == {name for name in LAWS.names() if law_named(name).example}


def test_measured_intervals_hold_about_what_they_promise():
    """Their level is inside a wide range of what was seen, for every number of every law."""
    for name, numbers in MEASURED["laws"].items():
        for number, row in numbers.items():
            assert 0.8 <= row["held"] <= 0.98, (name, number)
