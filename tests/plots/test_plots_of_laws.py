"""Each figure finds the numbers that were put in, writes its three files, and says in a sentence what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from known_runs import B, C, isoflop, ladder, sweeps, table
from lab_runs import make_run
from matplotlib.figure import Figure
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.lab.figure_fits import parser_of

NAMES = (
    "plot_scaling_comparison", "plot_moe_scaling_comparison", "plot_muonh_comparison", "plot_bsz_scaling",
    "plot_flops_scaling", "plot_data_scaling", "plot_isoflop", "plot_allocation", "plot_speed_up", "plot_residuals",
)  # fmt: skip
PLOTS = {name: script_module(f"plots/{name}.py") for name in NAMES}


def drawn(name: str, folder: Path, *words: object) -> dict[str, Any]:
    """What the JSON of a figure says; all three files must be there."""
    given = [*map(str, words), "--output", str(folder / "found.v2.png"), "--samples", "200", "--level", "0.99"]
    assert exit_code(PLOTS[name].main, given) == 0
    assert (folder / "found.v2.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "found.v2.pdf").read_bytes().startswith(b"%PDF")
    return json.loads((folder / "found.v2.json").read_text())


def test_a_comparison_has_laws_and_leverage_with_intervals(tmp_path: Path) -> None:
    paths = [table(tmp_path / f"{name}.csv", ladder(fast, start=i)) for i, (name, fast) in
             enumerate({"base": 1.0, "fast": 1.5, "same": 1.0}.items())]  # fmt: skip
    found = drawn("plot_scaling_comparison", tmp_path, *paths)
    law = found["groups"]["base"]
    low, high = law["intervals"]["b"]
    assert low < B < high and law["without"] and law["noise"]["standard_deviation"] > 0
    fast, same = found["leverage"]["fast"], found["leverage"]["same"]
    assert fast["leverage"] == pytest.approx(1.5, rel=0.15) and not fast["tie"] and same["tie"]
    assert fast["interval"][0] < fast["leverage"] < fast["interval"][1]


def test_experts_with_too_few_sizes_have_no_law(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [*ladder(sparsity=1), *ladder(2.0, sparsity=8, start=1), *ladder(3.0, sparsity=64, sizes=2, start=2)]
    found = drawn("plot_moe_scaling_comparison", tmp_path, table(tmp_path / "runs.csv", rows))
    assert list(found["groups"]) == ["sparsity 1", "sparsity 8", "sparsity 64"]
    assert found["leverage"]["sparsity 8"]["leverage"] == pytest.approx(2.0, rel=0.15)
    assert "2 different flops" in found["groups"]["sparsity 64"]["refused"]
    assert "no law of sparsity 64" in capsys.readouterr().err


def test_best_rates_of_two_optimizers_over_depth(tmp_path: Path) -> None:
    rows = sweeps({8: 4e-3, 16: 2e-3, 32: 1e-3}, "depth", optimizer="muon")
    rows += sweeps(dict.fromkeys((8.0, 16.0, 32.0), 8e-3), "depth", optimizer="muonh")
    found = drawn("plot_muonh_comparison", tmp_path, table(tmp_path / "runs.csv", rows), "--group", "optimizer")
    muon, muonh = (found["groups"][name] for name in ("muon", "muonh"))
    assert muon["parameters"]["b"] == pytest.approx(-1, abs=0.05)
    assert muonh["parameters"]["b"] == pytest.approx(0, abs=0.05)
    for one, best in zip(muon["optima"], (4e-3, 2e-3, 1e-3)):
        assert one["bracketed"] and one["best"] == pytest.approx(best, rel=0.05)
        assert one["interval"][0] < best < one["interval"][1]


def test_the_law_of_the_best_rate_over_the_batch(tmp_path: Path) -> None:
    best = {2.0**k: 1e-5 * 2.0 ** (k / 2) for k in range(17, 22)}
    found = drawn("plot_bsz_scaling", tmp_path, table(tmp_path / "runs.csv", sweeps(best, "batch")))
    low, high = found["intervals"]["b"]
    assert low < 0.5 < high and len(found["optima"]) == 5


def test_a_sweep_that_does_not_bracket_its_best_rate_is_no_point_of_the_law(tmp_path: Path) -> None:
    rows = sweeps({2.0**k: 1e-5 * 2.0 ** (k / 2) for k in range(17, 21)}, "batch")
    rows = [row for row in rows if row["batch"] > 2**17 or row["rate"] > 1.3e-5 * 2**8.5]
    found = drawn("plot_bsz_scaling", tmp_path, table(tmp_path / "runs.csv", rows))
    assert [one["bracketed"] for one in found["optima"]] == [False, True, True, True]


@pytest.mark.parametrize(("name", "more"), [("plot_flops_scaling", ()), ("plot_residuals", ("--law", "power"))])
def test_one_power_law(name: str, more: tuple[str, ...], tmp_path: Path) -> None:
    found = drawn(name, tmp_path, table(tmp_path / "runs.csv", ladder()), *more)
    assert found["intervals"]["c"][0] < C < found["intervals"]["c"][1]
    assert found["lack_of_fit"]["p"] > 0.01


def test_loss_over_tokens_by_family(tmp_path: Path) -> None:
    rows = [*ladder(family="a"), *ladder(1.3, family="b")]
    found = drawn("plot_data_scaling", tmp_path, table(tmp_path / "runs.csv", rows), "--group", "family")
    assert {group: law["columns"]["x"]["name"] for group, law in found["groups"].items()} == {
        "a": "tokens",
        "b": "tokens",
    }
    assert found["groups"]["a"]["parameters"]["b"] == pytest.approx(B / 0.6, rel=0.2)


@pytest.mark.parametrize("name", ["plot_isoflop", "plot_allocation"])
def test_the_best_size_of_each_budget(name: str, tmp_path: Path) -> None:
    found = drawn(name, tmp_path, table(tmp_path / "runs.csv", isoflop()))
    assert found["parameters"]["N_exponent"] == pytest.approx(0.5, abs=0.03)
    for one in found["optima"][""]:
        best = 0.1 * one["flops"] ** 0.5
        assert (
            one["N"] == pytest.approx(best, rel=0.1) and one["intervals"]["N"][0] < one["N"] < one["intervals"]["N"][1]
        )


def test_chinchillas_law_has_an_allocation_without_shared_budgets(tmp_path: Path) -> None:
    found = drawn("plot_allocation", tmp_path, table(tmp_path / "runs.csv", isoflop()), "--law", "chinchilla")
    assert found["parameters"]["N_exponent"] == pytest.approx(0.5, abs=0.1) and "optima" not in found


def test_speed_ups_over_the_first_ladder(tmp_path: Path) -> None:
    paths = [table(tmp_path / f"{n}.csv", ladder(f, start=f)) for n, f in {"base": 1, "two": 2, "three": 3}.items()]
    found = drawn("plot_speed_up", tmp_path, *paths)
    assert found["baseline"] == "base" and list(found["groups"]) == ["two", "three"]
    for name, true in (("two", 2), ("three", 3)):
        low, high = found["groups"][name]["intervals"]["speed_up"]
        assert low == pytest.approx(true, rel=0.15) and high == pytest.approx(true, rel=0.15)


def test_a_ladder_that_has_no_speed_up_is_said_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        *ladder(sizes=3, seeds=1, kind="a"),
        *ladder(2.0, seeds=1, start=1, kind="b"),
        *ladder(kind="c", sizes=1, seeds=1),
    ]
    rows = [row for row in rows if row["kind"] != "a" or row["depth"] < 16]  # with c there are fewer runs than numbers
    path = table(tmp_path / "runs.csv", rows)
    found = drawn("plot_speed_up", tmp_path, path, "--group", "kind")
    assert "parameters" in found["groups"]["b"] and "refused" in found["groups"]["c"]
    assert "no speed-up of c" in capsys.readouterr().err


def test_what_a_law_cannot_say_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    drawn("plot_flops_scaling", tmp_path, table(tmp_path / "runs.csv", ladder(seeds=1)))
    assert "note: all runs have one seed" in capsys.readouterr().err


def test_a_study_of_run_folders_has_a_ladder(tmp_path: Path) -> None:
    for i, row in enumerate(ladder()):
        counts = {"total": 160, "non_embedding": 90}
        plan = {
            "counts": counts,
            "model_flops_per_token": row["flops"] / 2048,
            "depth": row["depth"],
            "seed": row["seed"],
        }
        summary = {"finished": True, "tokens": 2048, "metric/val_loss@1x": row["loss"]}
        make_run(tmp_path / f"study/run_{i}/run", summary=summary, plan=plan, row={"name": f"run_{i}"})
    found = drawn("plot_flops_scaling", tmp_path, tmp_path / "study")
    assert len(found["runs"]) == 15 and found["parameters"]["b"] == pytest.approx(B, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_column_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = table(tmp_path / "runs.csv", [*ladder(sparsity=2), *ladder(sparsity=4)])
    more = ["--group", "sparsity"] if name == "plot_speed_up" else []
    words = [str(path), "--y", "los", *more, "--output", str(tmp_path / "a.png")]
    assert exit_code(PLOTS[name].main, words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and said.endswith(".")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_runs_are_one_sentence(count: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = table(tmp_path / "runs.csv", ladder(sizes=count, seeds=1))
    for name in ("plot_flops_scaling", "plot_scaling_comparison"):
        assert exit_code(PLOTS[name].main, [str(path), "--output", str(tmp_path / "a.png")]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_runs_without_a_loss_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = ladder()
    rows[0]["loss"], rows[1]["loss"] = "nan", ""
    found = drawn("plot_flops_scaling", tmp_path, table(tmp_path / "runs.csv", rows))
    assert len(found["runs"]) == 13 and "left out: 2 runs that have no loss" in capsys.readouterr().err


def test_forty_groups_of_long_names(tmp_path: Path) -> None:
    rows = [row for i in range(40) for row in ladder(1 + i / 10, seeds=1, start=i, kind=f"{i}_{'long_' * 30}")]
    words = [table(tmp_path / "runs.csv", rows), "--group", "kind"]
    assert len(drawn("plot_scaling_comparison", tmp_path, *words)["groups"]) == 40


def test_the_words_of_archscales_guide() -> None:
    parser = parser_of("plot_flops_scaling", "", "")
    for words in (["--log_dir", "out", "--output_file", "a.png"], ["--log_dir=out", "--output_file=a.png"]):
        given = parser.parse_args(words)
        assert (given.runs, given.output) == ([Path("out")], Path("a.png"))


@pytest.mark.parametrize("name", [*NAMES, "plot_ablation", "plot_lr_transfer", "plot_run", "plot_stability"])
def test_the_help_of_a_figure_says_what_it_shows_and_types_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script_module(f"plots/{name}.py").main(["--help"])
    page = capsys.readouterr().out
    about = " ".join(page.split("\n\n")[1].split())
    assert len(about) > 60 and f"\n  python plots/{name}.py " in page


def test_what_a_star_and_a_dashed_line_are_is_in_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were drawn without a word."""
    names = list[str]()
    kept = Figure.legend

    def told(self: Figure, handles: Any, labels: list[str], **to: Any) -> Any:
        names.extend(labels)
        return kept(self, handles, labels, **to)

    monkeypatch.setattr(Figure, "legend", told)
    rates = table(tmp_path / "rates.csv", sweeps({8: 0.01, 12: 0.008, 16: 0.007}, "depth"))
    sizes = table(tmp_path / "isoflop.csv", isoflop())
    for figure, runs in (("plot_muonh_comparison", rates), ("plot_isoflop", sizes)):
        words = [str(runs), "--output", str(tmp_path / f"{figure}.png"), "--samples", "20"]
        PLOTS[figure].main(words)
    assert names.index("best value") - names.index("lowest point of a sweep") == 1
    assert names[-1] == "law of the best sizes"
