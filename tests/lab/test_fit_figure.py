"""The figure of every law, with a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_gpt.lab.fit_figure import draw_fits
from lit_gpt.lab.fit_report import judge
from lit_gpt.lab.fit_steps import Sample
from lit_gpt.lab.runs import Run
from lit_gpt.scaling.intervals import LEVEL, noisy
from lit_gpt.scaling.law import RUN
from lit_gpt.scaling.laws import LAWS, law_named

PLAIN = [name for name in LAWS.names() if law_named(name).example and not law_named(name).curves]


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith("moe_")])
def test_a_law_with_a_prediction_is_drawn(name: str, tmp_path: Path) -> None:
    """That of soft_to_hard ended in a traceback, as its place of a budget has no soft figure."""
    law = law_named(name)
    assert law.example is not None
    example, rng = law.example(), np.random.default_rng(0)
    said = example.data[law.explains]
    data = {**example.data, law.explains: noisy(law, said, example.noise * rng.standard_normal(len(said)))}
    runs = [Run(f"r{i}", None, "finished") for i in range(len(said))]
    sample = Sample(runs, data, [run.name for run in runs], law.reads)
    report = judge(name, law, sample, example.fixed, None, 10, LEVEL)
    budget = 2 * float(next(iter(data.values())).max())
    guesses = [report.at_budget(budget)] if report.fitted.place and RUN not in data else []
    path = draw_fits({"": report}, {"": guesses}, {"": None}, tmp_path / "f.png")
    assert path.stat().st_size > 5000
