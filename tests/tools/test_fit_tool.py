"""python -m lit_gpt.tools.fit: what it prints, writes, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gpt.config.command import exit_code
from lit_gpt.lab import fit_figure
from lit_gpt.scaling.laws import LAWS
from lit_gpt.scaling.laws.chinchilla import BESIROGLU
from lit_gpt.tools.fit import build_parser, main


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    """Six sizes of 20 tokens per parameter, two seeds each."""
    rng, lines = np.random.default_rng(1), ["name,parameters,tokens,loss,seed,family"]
    for i, n in enumerate(np.geomspace(3e7, 1e9, 6)):
        for seed in (1, 2):
            loss = 1.7 + 2500 * (120 * n * n) ** -0.175 + rng.normal(0, 0.003)
            lines.append(f"d{4 * i + 4}s{seed},{n:.6g},{20 * n:.6g},{loss:.5f},{seed},{'ab'[seed - 1]}")
    path = tmp_path / "ladder.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Three budgets of five sizes, with the headers of the published data."""
    rng, lines = np.random.default_rng(0), ["Model Size,Training FLOP,loss"]
    for flops in np.geomspace(1e18, 1e20, 3):
        for n in BESIROGLU.optimum(flops)[0] * np.geomspace(0.4, 2.5, 5):
            loss = float(BESIROGLU(n, flops / 6 / n)) + rng.normal(0, 0.002)
            lines.append(f"{n:.6g},{flops:.6g},{loss:.5f}")
    path = tmp_path / "grid.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in (*words, "--samples", 100)]) == 0
    return capsys.readouterr().out


def test_a_ladder(ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, residuals, the held-out size and a prediction, on paper and in a file."""
    words = ["--law", "power", "--x", "flops_6nd", "--hold_out", "largest", "--predict", "1e21"]
    out = printed(capsys, ladder, *words, "--json", tmp_path / "fit.json", "--plot", tmp_path / "fit.png")
    assert "x = flops_6nd: compute (6 x parameters without embeddings x tokens)" in out
    assert "runs       10" in out and "d24s1: " in out and "OUTSIDE" not in out
    assert "predicted at flops_6nd = 1e+21" in out and "equal runs differ by" in out
    assert (tmp_path / "fit.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "fit.json").read_text())
    low, high = found["intervals"]["b"]
    assert low < 0.175 < high and low < found["parameters"]["b"] < high
    assert [entry["inside"] for entry in found["held_out"]] == [True, True]
    (guess,) = found["predictions"]
    truth = 1.7 + 2500 * 1e21**-0.175
    assert guess["interval"][0] < truth < guess["interval"][1] and guess["budget"] == 1e21


@pytest.mark.parametrize("law", ["chinchilla", "isoflop"])
def test_a_grid(law: str, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [grid, "--law", law, "--predict", "1e21", "--plot", tmp_path / "grid.png"]
    out = printed(capsys, *words, *([] if law == "chinchilla" else ["--x", "flops_6nd"]))
    assert "N_exponent" in out and "D / N = " in out and (tmp_path / "grid.png").is_file()
    assert ("optimum of each budget" in out) == (law == "isoflop")


def test_groups_and_known_numbers(ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [ladder, "--law", "power", "--x", "tokens", "--group", "family", "--fix", "c=1.7"]
    out = printed(capsys, *words, "--json", tmp_path / "two.json", "--plot", tmp_path / "two.png")
    assert "family a" in out and "family b" in out and "all runs have one seed" in out
    assert {group: fit["given"] for group, fit in json.loads((tmp_path / "two.json").read_text()).items()} == {
        "a": {"c": 1.7},
        "b": {"c": 1.7},
    }


def test_too_few_runs_have_no_interval_and_say_so(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs, until the noise of seeds is given."""
    words = [ladder, "--law", "power", "--x", "tokens", "--where", "seed == 1 and tokens > 4e9"]
    out = printed(capsys, *words)
    assert "warning: 3 runs are no test of 3 numbers" in out and "--noise 0.003" in out and "none" in out
    assert "the noise 0.003 that was given" in printed(capsys, *words, "--noise", "0.003")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--law powr", "Unknown law 'powr'. Did you mean 'power'"),
        ("--law power", "no number 'flops'"),
        ("--law power --x tokens --fix c", "Write NAME=NUMBER"),
        ("--law power --x tokens --fix c=nan", "Write NAME=NUMBER"),
        ("--law power --x tokens --fix c=9", "not below every y"),
        ("--law power --x tokens --next 1e20", "does not say how to share a budget"),
        ("--law power --x tokens --predict -5", "no positive number"),
        ("--law power --x tokens --level 90", "between 0 and 1"),
        ("--law power --x tokens --samples 0", "samples of 1 or more"),
        ("--law power --x tokens --noise -1", "--noise is -1"),
        ("--law chinchilla", "D is one power of N"),
        ("--law power --x tokens --plot a.pdf", "ends in .png"),
        ("--law power --x tokens --group tokens", "error: tokens 600000000.0: This fit needs 3 different x"),
        ("--law power --x tokens --group family --next 1e20", "--group makes several"),
    ],
)
def test_what_is_refused(words: str, says: str, ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, [str(ladder), *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_refusal_says_which_runs_were_left_out(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table whose states are words of another program looked as if its runs had not been read."""
    header, *lines = ladder.read_text().split()
    states = ["finished" if i < 4 else "success" for i in range(len(lines))]
    ladder.write_text("\n".join([f"{header},state", *(f"{line},{state}" for line, state in zip(lines, states))]))
    assert exit_code(main, [str(ladder), "--law", "power", "--x", "tokens"]) == 2
    error = capsys.readouterr().err
    assert "This fit needs 3 different x" in error and "Left out: 8 runs that did not finish: d12s1" in error


def test_a_grid_of_rates_is_fitted_to_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make study` does: three sizes, two numbers, and the largest size is asked for."""
    lines = ["name,depth,flops,tokens,lr,loss"]
    for depth, flops, noise in ((2, 6e10, 0.01), (3, 4e11, -0.01), (4, 1.7e12, 0.01), (5, 5.6e12, 0.0)):
        losses = [43 * flops**-0.085 + noise + worse for worse in (0.1, 0.0, 0.2)]
        lines += [f"d{depth}_{i},{depth},{flops},1e6,0.0{i},{loss}" for i, loss in enumerate(losses)]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    words = ["--law", "power", "--fix", "c=0", "--lowest_per", "depth", "--hold_out", "largest"]
    out = printed(capsys, tmp_path / "runs.csv", *words)
    assert "of each depth, the configuration of the lowest mean loss is used: d2_1, d3_1, d4_1, d5_1" in out
    assert "runs       3" in out and "held out\n  d5_1: " in out and " is inside " in out and "d2_0" not in out


def test_the_help_names_every_law() -> None:
    text = " ".join(build_parser().format_help().split())
    for name in LAWS.names():
        assert name in text
    assert "--hold_out" in text and "Optional" not in text and "None" not in text


def test_batches_that_say_nothing_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The law then has no number that could be tested against noise."""
    table = tmp_path / "steps.csv"
    table.write_text("batch,steps\n" + "".join(f"{2**i},{1000 + i}\n" for i in range(4)))
    assert "warning: steps do not fall with the batch" in printed(capsys, table, "--law", "critical_batch")


def test_groups_of_a_figure_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eighth group had the color of the first one, and the same marker."""
    drawn: list[Any] = []
    monkeypatch.setattr(fit_figure, "save", lambda figure, path: drawn.append(figure) or path)
    rows = [f"{10**i},{3 + g / 10 + 2 * 10 ** (-i / 9)},{g}" for g in range(9) for i in range(17, 22)]
    (tmp_path / "t.csv").write_text("\n".join(["flops,loss,family", *rows]) + "\n")
    words = ["--law", "power", "--group", "family", "--samples", "20", "--plot", "f.png"]
    assert main([str(tmp_path / "t.csv"), *words]) == 0
    top = drawn[0].axes[0]
    handles, labels = top.get_legend_handles_labels()
    assert len(set(labels)) == 9
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 9
    assert drawn[0].legends and top.get_legend() is None, "so many names stand below the panel"


def test_what_follows_from_given_numbers_is_given(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An exponent of two given ones had an interval of no width; an offset that few budgets leave out is not given."""
    assert main([str(grid), "--law", "chinchilla", "--fix", "alpha=0.34", "beta=0.28", "--samples", "20"]) == 0
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["N_exponent"] == ["0.45161", "given"] and rows["alpha"] == ["0.34", "given"]
    assert rows["E"][1] != "given"


def test_best_sizes_are_predicted_where_the_law_of_their_losses_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is at its floor from the second of four budgets on; N* = 0.1 C^0.5 is there all the same."""
    path, lines = tmp_path / "runs.csv", ["flops,parameters,tokens,loss"]
    for flops, floor in zip(np.geomspace(1e18, 1e20, 4), (3.0, 2.4, 2.4, 2.4)):
        for away in np.linspace(-1.4, 1.4, 5):
            n = 0.1 * flops**0.5 * np.exp(away)
            lines.append(f"{flops},{n},{flops / 6 / n},{floor + 0.05 * away**2}")
    path.write_text("\n".join(lines) + "\n")
    assert main([str(path), "--law", "isoflop", "--predict", "1e21", "--samples", "20"]) == 0
    out = capsys.readouterr().out
    assert "not determined" in out and "N = 3.162e+09, D = 5.27e+10, D / N = 16.7" in out and "nan" not in out


def test_a_speed_up_of_ladders_that_do_not_fall_predicts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.csv"
    rows = [f"{flops},{word},3" for word in ("base", "new") for flops in np.geomspace(1e18, 1e20, 4)]
    path.write_text("\n".join(["flops,variant,loss", *rows]) + "\n")
    assert main([str(path), "--law", "speed_up", "--predict", "1e21", "--samples", "20"]) == 0
    out = capsys.readouterr().out
    assert "numbers that are not determined, so it says nothing there" in out and "nan" not in out


def test_a_law_without_numbers_predicts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    n, d = (np.tile(np.geomspace(1e8, 1e9, 4), 4), np.repeat(np.geomspace(1e9, 1e11, 4), 4))
    loss = 1.8 + 0.01 * n**0.2 + 2000 * d**-0.36
    path.write_text("parameters,tokens,loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(n, d, loss)))
    assert main([str(path), "--law", "chinchilla", "--predict", "1e21", "--samples", "20"]) == 0
    out = capsys.readouterr().out
    assert "numbers that are not determined, so it says nothing there" in out and "nan" not in out
