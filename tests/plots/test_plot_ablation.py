"""The ablation's table: differences that were put in, with intervals from what the seeds do not explain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from known_runs import table
from script_module import script_module

from lit_gpt.config.command import exit_code

plot = script_module("plots/plot_ablation.py")

SPREAD, SEEDS = (-0.004, 0.0, 0.004), (0.05, -0.02, -0.03)  # what is noise, and what a seed does to all its runs
PUT_IN = {"nothing": (1.5, 1000.0), "token_smear": (1.53, 1010.0), "backout": (1.501, 1000.0)}


def study(path: Path, family: str = "baseline", put_in: dict[str, tuple[float, float]] = PUT_IN) -> Path:
    rows = [
        {"name": f"{family}_{idea}_s{seed}", "train_model": family, "seed": seed,
         "loss": loss + SPREAD[(i + seed) % 3] + SEEDS[seed],
         "tokens_per_sec": speed * math.exp(SPREAD[(i + seed) % 3] + SEEDS[seed])}
        for i, (idea, (loss, speed)) in enumerate(put_in.items()) for seed in range(3)
    ]  # fmt: skip
    return table(path, rows)


def test_it_finds_what_was_put_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(study(tmp_path / f"{family}.csv", family)) for family in ("baseline", "transformer_mha")]
    assert exit_code(plot.main, [*files, "--output", str(tmp_path / "found.png")]) == 0
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    for family in ("baseline", "transformer_mha"):
        control, smear, backout = found[family]
        assert [one["idea"] for one in (control, smear, backout)] == ["nothing", "token_smear", "backout"]
        assert control["mean_loss"] == pytest.approx(1.5) and control["loss"] == 0
        assert smear["loss"] == pytest.approx(0.03) and backout["loss"] == pytest.approx(0.001)
        assert smear["time_percent"] == pytest.approx(100 * (1000 / 1010 - 1))
        # Six squares of 0.004 over four degrees of freedom, whose quantile of Student's t at 0.975 is 2.776.
        half = 2.776 * 0.004 * math.sqrt(6 / 4) * math.sqrt(2 / 3)
        assert smear["half_loss"] == pytest.approx(half, rel=1e-3)
        assert smear["half_time_percent"] == pytest.approx(100 * half * 1000 / 1010, rel=1e-3)
    assert "| token_smear | 3 | 1.5300 | +0.0300 +- 0.0111 | -1.0 +- 1.1 |" in shown
    assert 10_000 < (tmp_path / "found.png").stat().st_size < 300_000


def test_a_model_of_half_the_speed_has_twice_the_error(tmp_path: Path) -> None:
    """The error of the logarithm of the time was taken for that of percent."""
    path = study(tmp_path / "a.csv", put_in=PUT_IN | {"backout": (1.501, 500.0)})
    assert exit_code(plot.main, [str(path), "--output", str(tmp_path / "found.png")]) == 0
    found = {one["idea"]: one for one in json.loads((tmp_path / "found.json").read_text())["baseline"]}
    assert found["backout"]["time_percent"] == pytest.approx(100)
    assert found["backout"]["half_time_percent"] == pytest.approx(2 * 1.01 * found["token_smear"]["half_time_percent"])


def test_other_names_and_a_study_without_a_control_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {idea: values for idea, values in PUT_IN.items() if idea != "nothing"}
    lonely = study(tmp_path / "lonely.csv", put_in=others)
    odd = table(tmp_path / "odd.csv", [{"name": "first", "train_model": "baseline", "seed": 1, "loss": 2.0}])
    for path, said in ((lonely, "no finished runs of nothing"), (odd, "is not called FAMILY_IDEA_sSEED")):
        assert exit_code(plot.main, [str(path), "--output", str(tmp_path / "none.png")]) == 2
        assert said in capsys.readouterr().err


def row(idea: str, seed: int, loss: float, **more: object) -> dict[str, object]:
    cells = {"name": f"baseline_{idea}_s{seed}", "train_model": "baseline", "seed": seed, "loss": loss}
    return cells | {"tokens_per_sec": 1000, "tokens": 60e6, "state": "finished"} | more


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("nothing", 1, 1.5), row("backout", 1, 1.6, tokens=30e6)], "baseline_backout_s1 has 30,000,000 tokens"),
        ([row("nothing", 1, 1.5), row("backout", 2, 1.6)], "No idea of baseline shares a seed with nothing"),
        ([row("nothing", 1, 1.5), row("backout", 1, 1.6), row("backout", 1, 1.7)], "or is there twice"),
        ([row("nothing", 1, 1.5), row("backout", 1, math.nan)], "no finished runs of nothing and of another idea"),
        ([row("nothing", 1, 1.5), row("backout", 1, 1.6, state="failed")], "left out: baseline_backout_s1 (died)"),
    ],
)
def test_what_cannot_be_compared_is_no_figure(rows, said, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(plot.main, [str(table(tmp_path / "a.csv", rows)), "--output", str(tmp_path / "a.png")]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("a.p*"))


def test_one_seed_has_no_intervals_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed of seven digits, too."""
    rows = [row("nothing", 1234567, 1.5), row("backout", 1234567, 1.6, tokens_per_sec=800)]
    assert exit_code(plot.main, [str(table(tmp_path / "a.csv", rows)), "--output", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr()
    assert "| backout | 1 | 1.6000 | +0.1000 | +25.0 |" in shown.out and "nan" not in shown.out
    assert "too few seeds to say what is noise" in shown.err


def test_a_run_without_a_speed_has_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(idea, seed, 1.5 + 0.1 * (idea == "backout") + SPREAD[seed], tokens_per_sec=800 * (seed < 2))
            for idea in ("nothing", "backout", "relu2") for seed in range(3)]  # fmt: skip
    rows = [one | {"tokens_per_sec": ""} if "relu2" in str(one["name"]) else one for one in rows]
    assert exit_code(plot.main, [str(table(tmp_path / "a.csv", rows)), "--output", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr()
    assert "| backout | 3 | 1.6000 | +0.1000 +- 0.0000 | " in shown.out
    assert "| relu2 | 3 | 1.5000 |" in shown.out and "| not measured |" in shown.out and "nan" not in shown.out
    assert "baseline_relu2_s1 has no speed: only its loss counts" in shown.err
    assert json.loads((tmp_path / "a.json").read_text())["baseline"][2]["time_percent"] is None


def test_what_a_host_does_to_all_its_runs_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an idea whose runs are all on the slower host, where there is no run of the control."""
    ran = [("nothing", 0, "a"), ("nothing", 1, "a"), ("backout", 0, "a"), ("backout", 1, "b"), ("relu2", 0, "b"),
           ("relu2", 1, "b")]  # fmt: skip
    longer = {"nothing": 1.0, "backout": 1.1, "relu2": 1.2, "a": 1.0, "b": 1.5}
    rows = [row(idea, seed, 1.5, tokens_per_sec=1000 / (longer[idea] * longer[on]), host=on) for idea, seed, on in ran]
    assert exit_code(plot.main, [str(table(tmp_path / "a.csv", rows)), "--output", str(tmp_path / "a.png")]) == 0
    found = {one["idea"]: one for one in json.loads((tmp_path / "a.json").read_text())["baseline"]}
    assert found["backout"]["time_percent"] == pytest.approx(10) and found["relu2"]["time_percent"] == pytest.approx(20)
    by_folders = [plot.Run(f"baseline_{idea}_s{seed}", tmp_path / f"{idea}{seed}", "finished") for idea, seed, _ in ran]
    for run, (*_, on) in zip(by_folders, ran):
        run.folder.mkdir()
        (run.folder / "environment.json").write_text(json.dumps({"host": on}))
    assert [plot.host(run) for run in by_folders] == [on for *_, on in ran]


def test_no_speed_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(idea, seed, 1.5, tokens_per_sec="") for idea in ("nothing", "backout") for seed in range(2)]
    assert exit_code(plot.main, [str(table(tmp_path / "a.csv", rows)), "--output", str(tmp_path / "a.png")]) == 0
    assert "| not measured |" in capsys.readouterr().out
