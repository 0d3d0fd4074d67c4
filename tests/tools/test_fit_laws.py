"""Every law by the tool fit, from a table of the runs of its example."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from lab_runs import make_run

from lit_gpt.lab.fit_steps import RATE
from lit_gpt.scaling.intervals import noisy
from lit_gpt.scaling.laws import LAWS, law_named
from lit_gpt.scaling.laws.trajectory import DELAY, areas
from lit_gpt.tools.fit import main

OF_ENDS = [name for name in LAWS.names() if not law_named(name).curves and law_named(name).example]
WORDS = {1.0: "transformer", 2.0: "samba"}  # of a column of words


@pytest.mark.parametrize("name", OF_ENDS)
def test_the_tool_finds_the_numbers_of_the_example(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    law = law_named(name)
    assert law.example is not None
    example, path, found_in = law.example(), tmp_path / "runs.csv", tmp_path / "fit.json"
    y = example.data[law.explains]
    by = 0.3 * example.noise * np.random.default_rng(0).standard_normal(len(y))
    data = {**example.data, law.explains: noisy(law, y, by)}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(law.reads.values())
        for values in zip(*(data[symbol] for symbol in law.reads)):
            rows.writerow([WORDS[v] if s in law.labels else v for s, v in zip(law.reads, values)])
    fix = [f"{key}={value}" for key, value in example.fixed.items()]
    words = [str(path), "--law", name, "--samples", "40", "--json", str(found_in), *(["--fix", *fix] if fix else [])]
    assert main(words) == 0
    out, found = capsys.readouterr().out, json.loads(found_in.read_text())
    assert f"{name}: {law.formula}" in " ".join(out.split()) and "intervals  none" not in out
    for number, true in example.numbers.items():
        low, high = found["intervals"][number]
        wide = max(high - low, 1e-3 * abs(true))
        assert low - wide < true < high + wide, number
    if law.labels:
        assert "variant 1 is transformer, 2 is samba" in out


def test_where_a_run_that_still_trains_will_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The decay has begun at step 1400 of 2000; steps are logged to 1800."""
    steps = np.arange(10.0, 2001, 10)
    rate = 0.01 * np.minimum(np.minimum(steps / 100, 1), np.maximum((2000 - steps) / 600, 0))
    s1, s2, _ = areas(steps, rate, DELAY)
    loss = 2.0 + 1.2 * s1**-0.5 - 20 * s2 * 1e-3
    loss += 0.002 * np.random.default_rng(0).standard_normal(len(loss))
    lines = [
        {"step": int(s), "total_tokens": int(512 * s), "metric/train_loss": float(y), RATE: float(r)}
        for s, y, r in zip(steps, loss, rate)
        if s <= 1800
    ]
    schedule = {"name": "wsd", "warmup_tokens": 51200.0, "total_tokens": 1024000.0, "decay_fraction": 600 / 1900}
    roles = {"matrix": {"lr": 0.01, "weight_decay": 0.1}}
    plan = {"steps": 2000, "batch_tokens": 512, "schedule": schedule, "roles": roles}
    make_run(tmp_path / "run", plan=plan, metrics=lines, summary=None)
    found_in = tmp_path / "fit.json"
    words = [str(tmp_path / "run"), "--law", "trajectory", "--predict", "2000", "--json", str(found_in)]
    assert main([*words, "--samples", "60"]) == 0
    assert "to come" in capsys.readouterr().out
    (predicted,) = json.loads(found_in.read_text())["predictions"]
    assert predicted["predicted"] == pytest.approx(loss[-1], abs=0.02)
    assert predicted["interval"][0] - 0.01 < loss[-1] < predicted["interval"][1] + 0.01
