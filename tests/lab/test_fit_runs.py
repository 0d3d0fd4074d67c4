"""Which runs a fit takes, what it leaves out and says so, and which columns stand behind a law's symbols."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lab_runs import SUMMARY, make_run

from lit_gpt.errors import UserError
from lit_gpt.lab.fit_runs import columns_of, finished_runs, grouped, held_out, lowest_per, part, sample
from lit_gpt.lab.runs import Run
from lit_gpt.scaling.laws import law_named

POWER, CHINCHILLA, ENVELOPE = (law_named(name) for name in ("power", "chinchilla", "envelope"))


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["name,parameters,tokens,loss,family,seed", *lines]) + "\n")
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rows = (f"r{i}{f},{10 ** (7 + i)},{2 * 10 ** (8 + i)},{4 - i / 2},{f},1" for i in range(4) for f in "ab")
    return table(tmp_path / "runs.csv", *rows)


def runs_of(csv: Path, where: str | None = None) -> list[Run]:
    return finished_runs([csv], where, ["tokens", "loss"], False)[0]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """A run that was cut, one without a loss, and one that saw its data twice; --repeated takes the last."""
    for name, summary, seen in (
        ("whole", SUMMARY, 1.0),
        ("cut", {**SUMMARY, "finished": False}, 1.0),
        ("diverged", {k: v for k, v in SUMMARY.items() if "loss" not in k}, 1.0),
        ("twice", SUMMARY, 2.5),
    ):
        line = {"step": 4, "total_tokens": 2048, "data/epoch/text": seen}
        make_run(tmp_path / name / "run", row={"name": name}, summary=summary, metrics=[line], sources={"text": 4096})
    runs, notes = finished_runs([tmp_path], None, ["loss"], False)
    assert [run.name for run in runs] == ["whole"]
    said = " ".join(notes)
    assert "1 run that did not finish: cut" in said and "1 run that has no loss: diverged" in said
    assert "saw data more than once (--repeated true takes them): twice" in said
    assert [run.name for run in finished_runs([tmp_path], None, ["loss"], True)[0]] == ["twice", "whole"]


def test_where_and_group(csv: Path) -> None:
    runs = runs_of(csv, "tokens > 1e9 and family == 'a'")
    assert [run.name for run in runs] == ["r1a", "r2a", "r3a"]
    assert {name: len(members) for name, members in grouped(runs_of(csv), "family").items()} == {"a": 4, "b": 4}
    with pytest.raises(UserError, match="true of none of 8 runs"):
        runs_of(csv, "tokens > 1e99")
    with pytest.raises(UserError, match=r"has no 'famly' to group by\. Did you mean 'family'"):
        grouped(runs_of(csv), "famly")


def test_runs_of_several_models_are_said(tmp_path: Path) -> None:
    """One law went through two mixers without a word; a study may give their options as a mapping or as JSON."""
    for name, options in (
        ("a", {"own": {"gate": True}}),
        ("b", {"own": {"gate": False}}),
        ("c", {"own": {"gate": True}}),
    ):
        make_run(tmp_path / name / "run", row={"name": name, "mixer_options": options}, summary=SUMMARY)
    runs = finished_runs([tmp_path], None, ["loss"], False)[0]
    said = " ".join(sample(POWER, runs, dict(POWER.reads)).notes)
    assert "the runs differ in mixer_options: --group mixer_options fits them apart" in said
    assert [len(members) for members in grouped(runs, "mixer_options").values()] == [1, 2]


def test_columns_behind_symbols() -> None:
    """A column finds the symbol that has such a column by default."""
    assert columns_of(POWER, ["tokens"], "bpb") == {"x": "tokens", "y": "bpb"}
    assert columns_of(CHINCHILLA, ["parameters_all"], None) == {"N": "parameters_all", "D": "tokens", "L": "loss"}
    assert columns_of(law_named("isoflop"), ["flops_6nd"], None)["C"] == "flops_6nd"
    assert columns_of(CHINCHILLA, ["D=steps"], None)["D"] == "steps"
    with pytest.raises(UserError, match="say which one 'steps' is, as in --x SYMBOL=steps"):
        columns_of(CHINCHILLA, ["steps"], None)
    with pytest.raises(UserError, match="This law has no 'Z'"):
        columns_of(CHINCHILLA, ["Z=steps"], None)


def test_one_seed_is_said(csv: Path) -> None:
    found = sample(POWER, runs_of(csv), {"x": "tokens", "y": "loss"})
    assert "all runs have one seed" in found.notes[0]
    np.testing.assert_allclose(found.data["y"], np.repeat([4.0, 3.5, 3.0, 2.5], 2))


def test_copies_of_a_run_are_said(csv: Path) -> None:
    reads = {"x": "tokens", "y": "loss"}
    assert "4 of 8 runs equal another one in every number (r0b, r1b, r2b, ...)" in " ".join(
        sample(POWER, runs_of(csv), reads).notes
    )
    assert "equal another" not in " ".join(sample(POWER, runs_of(csv, "family == 'a'"), reads).notes)


def test_runs_of_other_data_are_said(tmp_path: Path) -> None:
    """Other text, or another tokenizer: their losses are no points of one law."""
    for i, content in enumerate(("one", "one", "two", None)):
        folder = make_run(tmp_path / f"r{i}/run", row={"name": f"r{i}"}, summary={**SUMMARY, "tokens": 2000 + i})
        data = {"train": {"content": "same"}, "validation": {"content": content} if content else None}
        text = json.dumps({"data": {part: said for part, said in data.items() if said}})
        (folder / "environment.json").write_text(text)
    runs, _ = finished_runs([tmp_path], None, ["tokens", "loss"], False)
    said = " ".join(sample(POWER, runs, {"x": "tokens", "y": "loss"}).notes)
    assert "validated on different data, such as r0 and r2" in said and "trained on" not in said


def test_what_is_held_out(csv: Path) -> None:
    """The runs of the most compute, or those of a name."""
    found = sample(POWER, runs_of(csv), {"x": "tokens", "y": "loss"})
    assert part(found, held_out(POWER, found, "largest")).names == ["r3a", "r3b"]
    assert part(found, ~held_out(POWER, found, "*a")).names == ["r0b", "r1b", "r2b", "r3b"]
    for which, says in (("r9", "No run is called 'r9'"), ("*", "holds out all 8 runs")):
        with pytest.raises(UserError, match=says):
            held_out(POWER, found, which)


def test_curves_are_read_step_by_step(tmp_path: Path) -> None:
    """Compute grows with the tokens to that of the run; a long curve of training losses is averaged."""
    for depth in (2, 3):
        lines = [
            {"step": i, "total_tokens": 10.0 * i, "metric/train_loss": 5 - i / 1000, "metric/val_loss@1x": None}
            for i in range(1, 501)
        ]
        summary = {**SUMMARY, "tokens": 5000}
        make_run(tmp_path / f"d{depth}", plan={"depth": depth}, metrics=lines, summary=summary, depth=depth)
    runs, _ = finished_runs([tmp_path], None, ["flops", "parameters", "tokens", "loss"], False)
    found = sample(ENVELOPE, runs, ENVELOPE.reads)
    assert found.reads["L"] == "metric/train_loss" and 2 * 8 <= len(found.names) <= 2 * 60
    np.testing.assert_allclose(found.data["C"], found.data["D"] * 1000.0)
    assert set(found.data["N"]) == {90.0} and set(found.data["run"]) == {0.0, 1.0}


def test_a_table_has_no_curves(csv: Path) -> None:
    with pytest.raises(UserError, match="has no training curve; this law needs run folders"):
        sample(ENVELOPE, runs_of(csv), {**ENVELOPE.reads, "C": "flops_6nd"})


def test_the_lowest_of_each_size_or_budget(tmp_path: Path) -> None:
    """Seeds of one configuration stay together; budgets that differ by less than a batch are one."""
    lines = [
        "a,1e6,1e8,3.0,x,1",
        "b,1e6,1.01e8,2.9,x,1",
        "c,2e6,2e8,2.5,x,1",
        "d,2e6,2e8,2.7,x,2",
        "e,2e6,2e8,2.55,y,1",
    ]
    runs = finished_runs([table(tmp_path / "runs.csv", *lines)], None, ["tokens", "loss"], False)[0]
    for by in ("parameters", "tokens"):
        kept, (said,) = lowest_per(runs, by, "loss")
        assert [run.name for run in kept] == ["b", "e"], "the mean of two seeds, 2.6, is above the one run of y"
        assert said == f"of each {by}, the configuration of the lowest mean loss is used: b, e"
    with pytest.raises(UserError, match="no 'dept'"):
        lowest_per(runs, "dept", "loss")


def test_trunks_are_left_out(tmp_path: Path) -> None:
    """Their weights have not decayed; whole curves with their rates are another matter."""
    for name, row in (("trunk1", {"part": "trunk"}), ("fork1", {"part": "fork", "after": "trunk1"})):
        line = {"step": 4, "total_tokens": 2048}
        make_run(tmp_path / name / "run", row={"name": name, **row}, summary=SUMMARY, metrics=[line])
    runs, notes = finished_runs([tmp_path], None, ["loss"], False)
    assert [run.name for run in runs] == ["fork1"]
    assert notes == ("left out: 1 run that are trunks, whose weights have not decayed: trunk1",)
    assert len(finished_runs([tmp_path], None, [], False, unfinished=True)[0]) == 2


def test_groups_of_numbers_are_in_their_order(tmp_path: Path) -> None:
    """Depth 12 came before 4, and was the baseline of comparisons, since 1 is before 4 as text."""
    runs = runs_of(table(tmp_path / "t.csv", *(f"r{d},{d},1e9,3,a,{d}" for d in (12, 4, 8))))
    assert list(grouped(runs, "parameters")) == ["4.0", "8.0", "12.0"]
