"""python -m lit_gpt.tools.runs: what it shows, writes and refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from lab_runs import SUMMARY, make_run

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.tools.runs import main
from lit_gpt.utils.files import write_text


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name, seed, depth, loss in (("a", 1, 2, 2.5), ("b", 2, 2, 2.25), ("c", 1, 4, 1.5)):
        make_run(
            tmp_path / "study" / name / "run",
            row={"name": name},
            plan={"seed": seed, "data_seed": seed, "depth": depth},
            summary={**SUMMARY, "metric/val_loss@1x": loss},
            seed=seed,
            depth=depth,
        )
    make_run(tmp_path / "study/d/run", row={"name": "d"}, plan={"seed": 5, "depth": 8}, summary=None, seed=5, depth=8)
    return tmp_path / "study"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(study))
    assert lines[0].split() == ["run", "state", "depth", "seed", "tokens", "parameters", "loss"]
    assert [line.split() for line in lines[1:5]] == [
        ["a", "finished", "2", "1", "2048", "90", "2.5"],
        ["b", "finished", "2", "2", "2048", "90", "2.25"],
        ["c", "finished", "4", "1", "2048", "90", "1.5"],
        ["d", "died", "8", "5", "2048", "90", "-"],
    ]
    assert lines[-1] == "4 runs: 3 finished, 1 died"


def test_conditions_order_and_columns(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(study), "--where", "depth < 8", "--sort=-loss", "--columns", "loss,max(depth, seed)")
    assert lines[0].split(maxsplit=3) == ["run", "state", "loss", "max(depth, seed)"]
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "c"]
    assert [line.split()[0] for line in printed(capsys, str(study), "--sort", "loss")[1:5]] == ["c", "b", "a", "d"]


def test_the_file_has_all_digits(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, str(study), "--csv", str(tmp_path / "x/runs.csv"), "--columns", "seed,tokens,loss,loss / 3")
    rows = list(csv.DictReader((tmp_path / "x/runs.csv").open()))
    assert list(rows[0]) == ["name", "state", "seed", "tokens", "loss", "loss / 3"]
    assert (rows[0]["seed"], rows[0]["tokens"]) == ("1", "2048")
    assert float(rows[0]["loss / 3"]) == 2.5 / 3 and rows[3]["loss"] == ""
    lines = printed(capsys, str(study), "--csv", "-", "--columns", "seed,tokens,loss,loss / 3")
    assert lines == (tmp_path / "x/runs.csv").read_text().splitlines()


def test_no_file_is_called_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where - means the terminal elsewhere, it became a file, which then was in the way of rm and git."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'-' is no name for a file here. Give one, such as"):
        write_text(Path("-"), "text")
    assert not any(tmp_path.iterdir())


def test_side_by_side_and_names(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        line.split()[0]: line.split()[1:] for line in printed(capsys, str(study), "--compare", "--where", "seed == 1")
    }
    assert found["depth"] == ["2", "4"] and found["loss"] == ["2.5", "1.5"] and "optimizer" not in found
    text = "\n".join(printed(capsys, str(study), "--names"))
    assert "validation loss (nats per token)" in text and "optimizer" in text and "state == 'died'" in text


def test_noise(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(study), "--noise")
    assert lines[1].split() == ["2", "2.3750", "-", "-", "0.1768", "(1)"]
    with pytest.raises(UserError, match=r"No two of these 1 runs differ in their seeds alone and have a loss"):
        main([str(study), "--noise", "--where", "depth == 4"])


def test_refusals_are_sentences(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        ([str(study), "--where", "depth == 3"], "None of 4 runs has depth == 3"),
        ([str(study), "--where", "dept == 3"], "Did you mean 'depth'"),
        ([str(study), "--columns", "los"], "Did you mean 'loss'"),
        ([str(study), "--sort", "depth ="], "no expression"),
        ([str(study), str(study), "--compare", "--where", "depth == 4"], "is one. Give another one, too"),
        ([str(tmp_path / "none")], "does not exist"),
    ):
        assert exit_code(main, words) == 2
        assert says in capsys.readouterr().err


def test_noise_of_runs_without_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repeated runs without validation data ended in a traceback."""
    for seed in (1, 2):
        make_run(tmp_path / "none" / str(seed), plan={"seed": seed}, summary={**SUMMARY, "metric/val_loss@1x": None})
        make_run(tmp_path / "some" / str(seed), plan={"seed": seed, "depth": 3}, depth=3)
    with pytest.raises(UserError, match="have a loss"):
        main([str(tmp_path / "none"), "--noise"])
    assert printed(capsys, str(tmp_path), "--noise")[1].split()[:2] == ["2", "2.0000"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("summary.json", "{"), ("plan.json", "[]"), ("config.yaml", "a: ["), ("config.yaml", "- a")),
        ("summary.json", f'{{"tokens": {10**400}}}'),  # no float is as large
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    file: str, content: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One damaged summary.json ended the table of all runs."""
    damaged = study / "b/run" / file
    damaged.write_text(content)
    for words in ([], ["--csv", str(tmp_path / "runs.csv")], ["--names"]):
        assert exit_code(main, [str(study), *words]) == 2
        said = capsys.readouterr()
        assert said.err.count("error: left out: ") == 1 and str(damaged.parent) in said.err
        assert file in said.err or "are not as pretrain.py writes them" in said.err
        assert words == ["--names"] or "3 runs: 2 finished, 1 died" in said.out
    assert [row["name"] for row in csv.DictReader((tmp_path / "runs.csv").open())] == ["a", "c", "d"]
    assert exit_code(main, [str(study / "b")]) == 2
    assert capsys.readouterr().out == "", "there is nothing to show"
