"""Figures exist, are small, and show what the log holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.metrics import curve
from lit_gpt.metrics.curve import draw_loss_curve, series, smooth
from lit_gpt.metrics.summary import read_metrics

plot_run = script_module("plots/plot_run.py")


def make_run(folder: Path, points: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(points)
    rows = []
    for step in range(1, points + 1):
        loss = 2 + 8 * step**-0.5 + rng.normal(0, 0.05)
        row = {"step": step, "time": 0, "metric/train_loss": loss, "total_tokens": step * 1e6}
        rows.append({**row, "metric/weight_learning_rate": 1e-3 * (1 - step / points)})
        if step % 10 == 0:
            rows.append({"step": step, "time": 0, "metric/val_loss@1x": loss})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def check_png(path: Path) -> None:
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.shape[0] > 400 and image.shape[1] > 800 and image.std() > 0.01
    assert 10_000 < path.stat().st_size < 300_000


@pytest.mark.parametrize("points", [1, 3000])
def test_loss_curve(tmp_path: Path, points: int):
    run = make_run(tmp_path / ("run_" + 150 * "x"), points)
    path = draw_loss_curve(run, bytes_per_token=4.3)
    assert path == run / "loss_curve.png"
    check_png(path)
    assert sorted(p.name for p in run.iterdir()) == ["loss_curve.png", "metrics.jsonl"]


def test_bits_per_byte_are_those_that_the_run_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first hour's own command drew no right axis, which its page explains."""
    run = make_run(tmp_path / "run", 20)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "metric/val_loss@1x": 4.0, "metric/val_bpb@1x": 2.0}) + "\n")
    found: list[float] = []
    monkeypatch.setattr(curve, "_bits_per_byte", lambda axes, bytes_per_token: found.append(bytes_per_token))
    draw_loss_curve(run)
    assert found == [pytest.approx(2 / math.log(2))]


def test_averages_of_the_weights_are_further_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path / "run", 20)
    with (run / "metrics.jsonl").open("a") as file:
        for name, loss in (("ema_1.5B@1x", 2.5), ("ema_100M@1x", 2.25), ("ema_100M@2x", 9.0)):
            file.write(json.dumps({"step": 20, f"metric/val_loss_{name}": loss}) + "\n")
    figures: list[Any] = []
    monkeypatch.setattr(curve, "_save", lambda figure, path: figures.append(figure))
    draw_loss_curve(run)
    names = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert names[2].startswith("validation: ")
    assert names[3:] == ["validation, ema_1.5B: 2.5000", "validation, ema_100M: 2.2500"]


def test_smoothing_has_no_lag_and_keeps_a_line():
    line = np.linspace(3.0, 1.0, 1000)
    out = smooth(line)
    np.testing.assert_allclose(out[:990], line[:990])
    naive = [np.mean(line[i - 10 : i + 11]) for i in range(900, 1000)]
    np.testing.assert_allclose(out[900:], naive)
    assert smooth(np.array([2.5])).tolist() == [2.5]


def test_series_uses_tokens_and_leaves_nan_out(tmp_path: Path):
    run = make_run(tmp_path / "a", 20)
    x, y = series(read_metrics(run), "metric/val_loss@1x", run)
    assert x.tolist() == [10e6, 20e6] and len(y) == 2


def test_plot_run_overlays_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [str(make_run(tmp_path / name, 50)) for name in "ab"]
    output = tmp_path / "f.png"
    assert plot_run.main([*runs, "--output", str(output), "--metric", "metric/val_loss@1x"]) is None
    assert capsys.readouterr().out.strip() == str(output)
    check_png(output)


def test_plot_run_draws_a_panel_for_every_metric(tmp_path: Path):
    """Rows of a sweep are called by their own folder; a run that lacks a metric is not in its panel."""
    runs = [make_run(tmp_path / name / "run", 50) for name in "ab"]
    lines = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["metric/extra"] = 3.5
    (runs[1] / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output, last = tmp_path / "f.png", tmp_path / "last.json"
    words = [*map(str, runs), "--output", str(output), "--json", str(last)]
    assert plot_run.main([*words, "--metric", "metric/val_loss@1x", "metric/extra"]) is None
    check_png(output)
    found = json.loads(last.read_text())
    assert found["metric/val_loss@1x"].keys() == {"a", "b"} and found["metric/extra"] == {"b": 3.5}


def test_plot_run_names_the_metrics_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "a", 20)
    assert exit_code(plot_run.main, [str(run), "--metric", "metric/val_los@1x"]) == 2
    assert "Did you mean 'metric/val_loss@1x'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        draw_loss_curve(tmp_path)


def test_many_names_stand_below_the_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The legend of fifty runs covered all curves, and was cut at the edge of the picture."""
    drawn: list[Any] = []
    monkeypatch.setattr(curve, "save", lambda figure, path: drawn.append(figure) or path)
    folders = []
    for i in range(30):
        folders.append(tmp_path / f"a_run_with_a_name_that_says_everything_of_it_number_{i}")
        folders[-1].mkdir()
        lines = [{"step": k, "total_tokens": k, "metric/train_loss": 3 + i / k} for k in range(1, 9)]
        (folders[-1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve.draw_overlay(folders, ["metric/train_loss"], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    box, figure = axes.get_legend().get_window_extent(), drawn[0].bbox
    assert box.y1 < axes.get_window_extent().y0, "below the curves"
    assert box.x0 > 0 and box.x1 < figure.x1 and box.y0 > 0, "and whole"
    assert axes.get_legend().get_title().get_text() == "12 of 30; --json FILE has all"


def test_one_value_far_above_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A spike of a million pressed the rest of the curve into a line."""
    drawn: list[Any] = []
    monkeypatch.setattr(curve, "save", lambda figure, path: drawn.append(figure) or path)
    lines = [{"step": k, "total_tokens": k, "metric/train_loss": 1e6 if k == 90 else 3.0} for k in range(1, 200)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve.draw_overlay([tmp_path], ["metric/train_loss"], tmp_path / "a.png")
    assert drawn[0].axes[0].get_yscale() == "log"


def test_plot_run_takes_a_folder_that_holds_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in "ab":
        run = make_run(tmp_path / "study" / name, 20)
        (run / "config.yaml").write_text("depth: 2\n")
    words = [str(tmp_path / "study"), "--output", str(tmp_path / "a.png"), "--metric", "metric/train_loss"]
    plot_run.main([*words, "--json", str(tmp_path / "a.json")])
    assert list(json.loads((tmp_path / "a.json").read_text())["metric/train_loss"]) == ["a", "b"]
