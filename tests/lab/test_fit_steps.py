"""Steps of runs with their rates, those to come too; ladders that are told apart by words; columns of experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_runs import make_run

from lit_gpt.errors import UserError
from lit_gpt.lab.fit_runs import columns_of, finished_runs, sample
from lit_gpt.lab.fit_steps import RATE
from lit_gpt.lab.fits import fit_of
from lit_gpt.lab.runs import read_runs
from lit_gpt.scaling.laws import law_named

TRAJECTORY, SPEED = law_named("trajectory"), law_named("speed_up")
PLANNED: dict[str, Any] = {
    "steps": 1000,
    "batch_tokens": 512,
    "batch_ramp": 1,  # as every Plan says that has none
    "schedule": {"name": "linear", "warmup_tokens": 51200.0, "total_tokens": 512000.0, "final": 0.0},
    "roles": {"matrix": {"lr": 0.01, "weight_decay": 0.1}},
}


def logged(until: int) -> list[dict[str, float]]:
    rate = [0.01 * min(s / 100, (1000 - s) / 900) for s in range(10, until + 1, 10)]
    return [
        {"step": s, "total_tokens": 512 * s, "metric/train_loss": 3.0 - s / 1000, RATE: r}
        for s, r in zip(range(10, until + 1, 10), rate)
    ]


def test_steps_to_come_follow_the_plan(tmp_path: Path):
    """Of a run that has not ended; a validation loss is no column of this law's points."""
    make_run(tmp_path / "run", plan=PLANNED, metrics=logged(500), summary=None)
    runs, _ = finished_runs([tmp_path], None, [], False, unfinished=True)
    data = sample(TRAJECTORY, runs, columns_of(TRAJECTORY, [], None)).data
    seen = np.isfinite(data["loss"])
    assert seen.sum() == 50 and data["steps"][seen].tolist() == list(range(10, 501, 10))
    ahead = ~seen
    assert (data["steps"][ahead].min(), data["steps"][ahead].max()) == (502, 1000)
    np.testing.assert_allclose(data["rate"][ahead], 0.01 * (1000 - data["steps"][ahead]) / 900, atol=1e-12)
    with pytest.raises(UserError, match="did not finish"):
        finished_runs([tmp_path], None, [], False)


def test_a_run_that_logged_no_rates_is_refused(tmp_path: Path):
    make_run(tmp_path / "run", plan=PLANNED)
    with pytest.raises(UserError, match=f"run has logged no {RATE}"):
        sample(TRAJECTORY, read_runs([tmp_path]), columns_of(TRAJECTORY, [], None))


def test_ladders_are_numbered_in_the_order_of_the_runs(tmp_path: Path):
    """By their studies, or by a column of words."""
    for study in ("base", "new"):
        for depth in (4, 8):
            folder = tmp_path / study / f"d{depth}" / "run"
            make_run(folder, row={"name": f"d{depth}"}, train_model=f"{study}_model")
    for words in ([], ["variant=train_model"]):
        for first, second in (("new", "base"), ("base", "new")):
            runs = read_runs([tmp_path / first, tmp_path / second])
            found = sample(SPEED, runs, columns_of(SPEED, words, None))
            assert found.data["variant"].tolist() == [1, 1, 2, 2]
            assert first in found.notes[0] and found.notes[0].index(first) < found.notes[0].index(second)


def test_runs_of_a_table_need_a_column_to_tell_them_apart(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("flops,loss\n1e18,3\n1e19,2\n")
    with pytest.raises(UserError, match=r"has no 'variant'\. Say which column"):
        sample(SPEED, read_runs([tmp_path / "runs.csv"]), columns_of(SPEED, [], None))


def test_columns_of_experts(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "model.json").write_text(json.dumps({"n_embd": 32, "experts": {"sparsity": 8, "top_k": 4}}))
    (found,) = read_runs([tmp_path])
    assert (found.value("sparsity"), found.value("granularity"), found.value("parameters_total")) == (8, 4, 100)


def test_the_report_draws_every_step(tmp_path: Path):
    """Also those of a run that still trains, and its end, which the law predicts."""
    make_run(tmp_path / "a/run", plan=PLANNED, metrics=logged(1000), row={"name": "a"})
    make_run(tmp_path / "b/run", plan=PLANNED, metrics=logged(800), row={"name": "b"}, summary=None)
    points = fit_of(read_runs([tmp_path]), "trajectory", {}, {"lambda": 0.99}, 10)["points"]
    steps = np.array(points["x"])
    assert set(points["names"]) == {"a", "b"} and len(steps) == len(points["y"]) == len(points["residual"])
    assert set(range(100, 801, 10)) <= set(steps.tolist())
