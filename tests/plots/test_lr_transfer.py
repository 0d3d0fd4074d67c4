"""The transfer figure finds optima that were put in, and says how well repeated seeds know them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lab_runs import SUMMARY, make_run
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.scaling.sweep_moves import moves

plot = script_module("plots/plot_lr_transfer.py")

GRID = [2.0**-k for k in range(14, 6, -1)]
BEST = {"sp": {4: 2**-9.0, 8: 2**-10.2, 16: 2**-11.5}, "mupp": {4: 2**-10.0, 8: 2**-9.9, 16: 2**-10.1}}


def sweep(folder: Path, best: dict[str, dict[int, float]], finished: bool = True, seed: int = 1, **plan: Any) -> Path:
    """Runs of a parabola, to which a seed adds a number of its own and noise of each rate."""
    for rule, depths in best.items():
        for depth, optimum in depths.items():
            for i, rate in enumerate(GRID):
                noise = 0.0 if seed == 1 else seed + 1e-3 * math.sin(i * seed * depth)
                loss = 3 - 0.1 * math.log(depth) + 0.05 * math.log(rate / optimum) ** 2 + noise
                values = {**SUMMARY, "finished": finished, "metric/val_loss@1x": loss, "metric/val_loss@2x": loss + 1}
                make_run(
                    folder / f"{rule}_{depth}_{rate}_{seed}" / "run",
                    plan={"depth": depth, "seed": seed, **plan},
                    summary=values,
                    parameterization=rule,
                    base_hps={"eta0": rate},
                )
    return folder


def drawn(tmp_path: Path, *words: str) -> tuple[int, Any]:
    """Exit code and JSON of the figure of tmp_path / "runs"."""
    result = tmp_path / "result.json"
    words = (str(tmp_path / "runs"), "--output", str(tmp_path / "figure.png"), "--json", str(result), *words)
    code = exit_code(plot.main, words)
    return code, json.loads(result.read_text()) if result.exists() else None


def test_it_finds_what_moves_and_what_stays(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs", BEST)
    code, found = drawn(tmp_path)
    assert code == 0
    assert found["sp"]["moved"] == pytest.approx(-2.5) and found["mupp"]["moved"] == pytest.approx(-0.1)
    for rule, depths in BEST.items():
        for depth, optimum in depths.items():
            assert found[rule]["depths"][str(depth)]["best_lr"] == pytest.approx(optimum)
            assert found[rule]["depths"][str(depth)]["best_lr_interval"] is None
    said = capsys.readouterr().out
    assert "moves -2.50 grid steps" in said and "mupp, sp: the runs near the best rates do not share several" in said
    assert 10_000 < (tmp_path / "figure.png").stat().st_size < 300_000


def test_repeated_seeds_are_averaged_and_give_an_interval(tmp_path, capsys) -> None:
    for seed in (2, 3, 4):
        sweep(tmp_path / "runs", BEST, seed=seed)
    code, found = drawn(tmp_path)
    low, high = found["sp"]["moved_interval"]
    assert code == 0 and found["sp"]["moved"] == pytest.approx(-2.5, abs=0.1)
    assert found["sp"]["moved"] - low == pytest.approx(high - found["sp"]["moved"]) and 0.01 < high - low < 0.2
    of_4 = found["sp"]["depths"]["4"]
    assert of_4["best_lr_interval"][0] < of_4["best_lr"] < of_4["best_lr_interval"][1]
    assert of_4["points"][str(2.0**-9)] == pytest.approx(3 - 0.1 * math.log(4) + 3, abs=1e-3), "the mean of the seeds"
    said = capsys.readouterr().out
    assert f"moves {found['sp']['moved']:+.2f} +- {(high - low) / 2:.2f} grid steps" in said and "noise" not in said


def test_another_number_of_the_summary_is_drawn(tmp_path) -> None:
    sweep(tmp_path / "runs", {"sp": {4: GRID[3]}})
    _, found = drawn(tmp_path, "--metric", "metric/val_loss@2x")
    assert found["sp"]["depths"]["4"]["best_loss"] == pytest.approx(4 - 0.1 * math.log(4))


def test_the_legend_covers_no_curve(tmp_path, monkeypatch) -> None:
    """It stood inside the first panel, on a curve, and did not name the star."""
    shown = []
    monkeypatch.setattr(plot, "write", lambda figure, path: shown.append(figure) or [path])
    runs = plot.collect([sweep(tmp_path, BEST)], "metric/val_loss@1x")
    plot.draw({rule: moves(of) for rule, of in runs.items()}, "metric/val_loss@1x", tmp_path / "a.png")
    (legend,) = shown[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["depth 4", "depth 8", "depth 16", "fitted minimum"]
    assert not any(axes.get_legend() for axes in shown[0].axes)


def test_an_optimum_at_the_end_of_the_sweep_is_not_believed(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs", {"sp": {4: GRID[0], 8: GRID[3]}})
    assert drawn(tmp_path)[0] == 0
    assert "widen it" in capsys.readouterr().out


def test_runs_that_say_nothing_are_left_out(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs", {"sp": {4: GRID[2]}}, finished=False)
    assert drawn(tmp_path)[0] == 2
    said = capsys.readouterr().err
    assert "not finished" in said and "No finished run" in said
    assert not (tmp_path / "figure.png").exists()


def test_two_runs_of_one_point_are_an_error(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs" / "a", {"sp": {4: GRID[2]}})
    sweep(tmp_path / "runs" / "b", {"sp": {4: GRID[2]}})
    assert drawn(tmp_path)[0] == 2
    assert "second run" in capsys.readouterr().err


def test_what_differs_in_more_than_the_seed_is_not_averaged(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs", {"sp": {4: GRID[2]}})
    sweep(tmp_path / "runs", {"sp": {4: GRID[2]}}, seed=2, tokens=4096)
    assert drawn(tmp_path)[0] == 2
    assert "differ in more than their seeds" in capsys.readouterr().err
