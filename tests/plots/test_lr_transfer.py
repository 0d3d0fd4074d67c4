"""The transfer figure finds optima that were put in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from script_module import script_module

from lit_gpt.config.command import exit_code

plot = script_module("plots/plot_lr_transfer.py")

GRID = [2.0**-k for k in range(14, 6, -1)]
BEST = {"sp": {4: 2**-9.0, 8: 2**-10.2, 16: 2**-11.5}, "mupp": {4: 2**-10.0, 8: 2**-9.9, 16: 2**-10.1}}


def sweep(folder: Path, best: dict[str, dict[int, float]], grid: list[float] = GRID, finished: bool = True) -> Path:
    for rule, depths in best.items():
        for depth, optimum in depths.items():
            for rate in grid:
                run = folder / f"{rule}_{depth}_{rate}" / "run"
                run.mkdir(parents=True)
                loss = 3 - 0.1 * math.log(depth) + 0.05 * math.log(rate / optimum) ** 2
                values = {"finished": finished, "rule": rule, "depth": depth, "metric/val_loss@1x": loss}
                (run / "summary.json").write_text(json.dumps(values))
                (run / "config.yaml").write_text(f"base_hps:\n  eta0: {rate}\n")
    return folder


def test_it_finds_what_moves_and_what_stays(tmp_path, capsys) -> None:
    figure, result = tmp_path / "figure.png", tmp_path / "result.json"
    words = [str(sweep(tmp_path / "runs", BEST)), "--output", str(figure), "--json", str(result)]
    assert exit_code(plot.main, words) == 0
    found = json.loads(result.read_text())
    assert found["sp"]["moved"] == pytest.approx(-2.5) and found["mupp"]["moved"] == pytest.approx(-0.1)
    for rule, depths in BEST.items():
        for depth, optimum in depths.items():
            assert found[rule]["depths"][str(depth)]["best_lr"] == pytest.approx(optimum)
    assert "moves -2.50 grid steps" in capsys.readouterr().out
    assert 10_000 < figure.stat().st_size < 300_000


def test_the_legend_covers_no_curve(tmp_path, monkeypatch) -> None:
    """It stood inside the first panel, on a curve, and did not name the star."""
    shown = []
    monkeypatch.setattr(plot, "write", lambda figure, path: shown.append(figure) or [path])
    plot.draw(plot.collect([sweep(tmp_path, BEST)], "metric/val_loss@1x"), "metric/val_loss@1x", tmp_path / "a.png")
    (legend,) = shown[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["depth 4", "depth 8", "depth 16", "fitted minimum"]
    assert not any(axes.get_legend() for axes in shown[0].axes)


def test_an_optimum_at_the_end_of_the_sweep_is_not_believed(tmp_path, capsys) -> None:
    runs = sweep(tmp_path, {"sp": {4: GRID[0], 8: GRID[3]}})
    assert exit_code(plot.main, [str(runs), "--output", str(tmp_path / "figure.png")]) == 0
    assert "widen it" in capsys.readouterr().out


def test_runs_that_say_nothing_are_left_out(tmp_path, capsys) -> None:
    runs = sweep(tmp_path, {"sp": {4: GRID[2]}}, finished=False)
    assert exit_code(plot.main, [str(runs), "--output", str(tmp_path / "figure.png")]) == 2
    said = capsys.readouterr().err
    assert "not finished" in said and "No finished run" in said
    assert not (tmp_path / "figure.png").exists()


def test_two_runs_of_one_point_are_an_error(tmp_path, capsys) -> None:
    sweep(tmp_path / "a", {"sp": {4: GRID[2]}})
    sweep(tmp_path / "b", {"sp": {4: GRID[2]}})
    assert exit_code(plot.main, [str(tmp_path), "--output", str(tmp_path / "figure.png")]) == 2
    assert "second run" in capsys.readouterr().err
