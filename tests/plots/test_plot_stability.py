"""Metrics of health from run folders and exported charts: their last and largest values, and spikes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_module import script_module

from lit_gpt.config.command import exit_code

plot = script_module("plots/plot_stability.py")


def run(folder: Path, spike: bool) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    rows = [
        {"step": step, "total_tokens": 512 * step, "metric/grad_norm": 1 + 0.01 * (step % 3), "metric/train_loss": 3.0}
        for step in range(1, 201)
    ]
    if spike:
        rows[149]["metric/grad_norm"] = 9.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_spike_is_counted_and_placed(tmp_path: Path) -> None:
    calm, wild = run(tmp_path / "calm", False), run(tmp_path / "wild", True)
    assert exit_code(plot.main, [str(calm), str(wild), "--output", str(tmp_path / "s.png")]) == 0
    found = json.loads((tmp_path / "s.json").read_text())["metric/grad_norm"]
    assert found["calm"]["spikes"] == 0 and found["wild"]["spikes"] == 1
    assert found["wild"]["largest"] == 9.0 and found["wild"]["largest_at_tokens"] == 150 * 512
    assert {path.suffix for path in tmp_path.glob("s.*")} == {".png", ".pdf", ".json"}


def test_a_chart_over_steps_becomes_one_over_tokens(tmp_path: Path) -> None:
    chart = tmp_path / "chart.csv"
    chart.write_text("Step,run a - metric/router_z_mean,run b - metric/router_z_mean\n1,2,\n2,3,4\n3,,nan\n")
    given = [str(chart), "--output", str(tmp_path / "s.png"), "--tokens_per_step", "100"]
    assert exit_code(plot.main, given) == 0
    found = json.loads((tmp_path / "s.json").read_text())["metric/router_z_mean"]
    assert found["run a"] == {"last": 3.0, "largest": 3.0, "largest_at_tokens": 200.0}
    assert found["run b"]["last"] == 4.0


@pytest.mark.parametrize(("metric", "said"), [(("--metric", "metric/grad_nor"), "Did you mean"), ((), "usual metric")])
def test_a_metric_that_is_not_there_is_one_sentence(
    metric: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = run(tmp_path / "run", False)
    if not metric:
        (folder / "metrics.jsonl").write_text('{"step": 1, "total_tokens": 512, "odd": 1}\n')
    assert exit_code(plot.main, [str(folder), *metric]) == 2
    assert said in capsys.readouterr().err
