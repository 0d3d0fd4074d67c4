"""No figure shows a run that has not finished as if it had, and none compares a run with itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from known_runs import isoflop, ladder, sweeps, table
from lab_runs import SUMMARY, make_run
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.metrics import curve
from lit_gpt.train.lease import take_lease

RATES = dict.fromkeys((2.0**17, 2.0**18, 2.0**19, 2.0**20), 2e-3)
OF_LAWS: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "plot_scaling_comparison": (ladder(), ()),
    "plot_moe_scaling_comparison": (ladder(sparsity=2), ()),
    "plot_muonh_comparison": (sweeps(dict.fromkeys((8.0, 16.0, 32.0), 2e-3), "depth"), ()),
    "plot_bsz_scaling": (sweeps(RATES, "batch"), ()),
    "plot_flops_scaling": (ladder(), ()),
    "plot_data_scaling": (ladder(), ()),
    "plot_isoflop": (isoflop(), ()),
    "plot_allocation": (isoflop(), ()),
    "plot_residuals": (ladder(), ()),
    "plot_speed_up": ([*ladder(kind="a"), *ladder(1.5, kind="b", start=1)], ("--group", "kind")),
}
ALL = {path.stem for path in (Path(__file__).parents[2] / "plots").glob("plot_*.py")}
BY_HAND = {"plot_ablation", "plot_families", "plot_lr_transfer", "plot_optimizers", "plot_run", "plot_stability"}
UNFINISHED = ("cut", "diverged", "running")
SEEN = [
    {"step": step, "total_tokens": 512 * step, "metric/train_loss": 5 / step, "metric/val_loss@1x": 4 / step}
    for step in range(1, 5)
]


def drawn(name: str, folder: Path, *words: object) -> Any:
    """What the JSON of a figure says."""
    given = [*map(str, words), "--output", str(folder / "a.png"), "--json", str(folder / "a.json")]
    assert exit_code(script_module(f"plots/{name}.py").main, given) == 0
    return json.loads((folder / "a.json").read_text())


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """Rows called after the states of their runs, one rule and depth; the best losses are of those to be left out."""
    leases = []
    for i, state in enumerate(("finished", *UNFINISHED)):
        summary = {**SUMMARY, "finished": state in ("finished", "running"), "diverged": state == "diverged"}
        summary["metric/val_loss@1x"] = 2.0 if state == "finished" else 1.0
        folder = tmp_path / "study" / state / "run"
        options = {"parameterization": "mupp", "base_hps": {"eta0": 0.1 * (i + 1)}}
        make_run(folder, row={"name": state}, summary=summary, metrics=SEEN, **options)
        leases += [take_lease(folder)] if state == "running" else []
    yield tmp_path / "study"
    for lease in leases:
        lease.close()


def test_every_figure_is_looked_at() -> None:
    """plot_families draws what benchmarks/families.py judged, which is runs that have finished."""
    assert {*OF_LAWS, *BY_HAND} == ALL


@pytest.mark.parametrize("name", OF_LAWS)
def test_laws_leave_unfinished_runs_out(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, more = OF_LAWS[name]
    told = [{**row, "state": "finished"} for row in rows]
    told += [{**rows[0], "loss": 0.1, "state": state} for state in ("killed", "diverged", "running")]
    words = ("--samples", "20", *more)
    found = [drawn(name, tmp_path, table(tmp_path / "runs.csv", some), *words) for some in (told, told[:-3])]
    assert found[0] == found[1]
    assert "left out: 3 runs that did not finish: runs:" in capsys.readouterr().err


def test_optimizers_leave_unfinished_runs_out(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = script_module("plots/plot_optimizers.py")
    assert plot.curves(study) == {"finished": [(512 * step, 4 / step) for step in range(1, 5)]}
    said = capsys.readouterr().err
    assert [f"{study / state / 'run'} (not finished: {state})" in said for state in UNFINISHED] == [True] * 3
    make_run(study / "finished/again", metrics=SEEN)
    assert exit_code(plot.main, [str(study), "--output", str(tmp_path / "a.png")]) == 2
    assert "are both finished runs of finished" in capsys.readouterr().err
    assert exit_code(plot.main, [str(study / "cut"), "--output", str(tmp_path / "a.png")]) == 2
    assert "has no finished runs" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_sweeps_leave_unfinished_runs_out(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect = script_module("plots/plot_lr_transfer.py").collect
    found = collect([study, study / "finished", study.parent / "study/../study"], "metric/val_loss@1x")
    assert found == {"mupp": {2: {(0.1, (1.0, 1.0)): 2.0}}}
    said = capsys.readouterr().err
    assert [f"(not finished: {state})" in said for state in UNFINISHED] == [True] * 3


def test_curves_are_called_after_their_state(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(curve, "_save", lambda figure, path: figures.append(figure))
    runs = [study / state / "run" for state in ("finished", *UNFINISHED)]
    found = drawn("plot_run", tmp_path, *runs, runs[0].parent / "../finished/run", "--metric", "metric/val_loss@1x")
    names = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert names == ["finished: 1", *(f"{state} ({state}): 1" for state in UNFINISHED)]
    assert found == {"metric/val_loss@1x": pytest.approx(dict.fromkeys(("finished", *UNFINISHED), 1.0))}
    for folder, title in zip(runs, ("run", "run (cut)")):
        script_module("plots/plot_run.py").main([str(folder)])
        assert figures[-1].axes[0].get_title() == title


def test_curves_of_equal_names_are_all_drawn(study: Path, tmp_path: Path) -> None:
    """Two rows of one name in two studies were one curve, in the colour of the other."""
    other = make_run(tmp_path / "other/finished/run", row={"name": "finished"}, metrics=SEEN[:2])
    here = study / "finished/run"
    found = drawn("plot_run", tmp_path, here, other, "--metric", "metric/val_loss@1x")["metric/val_loss@1x"]
    assert found == pytest.approx({str(here): 1.0, str(other): 2.0})
    found = drawn("plot_stability", tmp_path, here, other, here.parent)["metric/train_loss"]
    assert {name: one["last"] for name, one in found.items()} == {"study/finished": 1.25, "other/finished": 2.5}


def test_health_says_the_state(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = drawn("plot_stability", tmp_path, study)["metric/train_loss"]
    assert {name: one.get("state") for name, one in found.items()} == {
        "finished": None, **{state: state for state in UNFINISHED},
    }  # fmt: skip
    charts = [tmp_path / name for name in ("a.csv", "b.csv")]
    for chart in charts:
        chart.write_text("Step,run a - metric/grad_norm\n1,2\n")
    plot, words = script_module("plots/plot_stability.py"), ["--output", str(tmp_path / "b.png")]
    assert exit_code(plot.main, [*map(str, charts), *words]) == 2
    assert "b.csv has metric/grad_norm of run a once more" in capsys.readouterr().err


def test_what_a_path_twice_says(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.csv", ladder())
    (tmp_path / "link.csv").symlink_to(runs)
    for paths, said in (
        ((runs, runs), f"{runs} is given twice"),
        ((runs, tmp_path / "link.csv"), f"{runs} and {tmp_path / 'link.csv'} hold"),
        ((study, study / "finished"), f"{study} and {study / 'finished'} hold"),
        ((study / "finished/run", study), "which would be compared with itself"),
    ):
        for name in ("plot_scaling_comparison", "plot_speed_up"):
            words = [*map(str, paths), "--output", str(tmp_path / "a.png")]
            assert exit_code(script_module(f"plots/{name}.py").main, words) == 2
            assert said in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_a_table_given_twice_counts_once_in_one_group(tmp_path: Path) -> None:
    runs = table(tmp_path / "runs.csv", ladder(sparsity=2))
    once, twice = (
        drawn("plot_moe_scaling_comparison", tmp_path, *paths, "--samples", "20") for paths in ([runs], [runs, runs])
    )
    assert once == twice


def test_copies_in_two_groups_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (table(tmp_path / f"{name}.csv", ladder()) for name in "ab")
    assert list(drawn("plot_scaling_comparison", tmp_path, a, b, "--samples", "20")["groups"]) == ["a", "b"]
    assert "note: 15 of 15 runs of b equal one of a in every number" in capsys.readouterr().err
