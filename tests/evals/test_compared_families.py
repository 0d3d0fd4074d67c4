"""benchmarks/families.py: intervals worked out by hand, its windows, and a judged sweep of two runs."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from held_out_text import document
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.data.kept_tokenizer import describe_tokenizer

families, plot = script_module("benchmarks/families.py"), script_module("plots/plot_families.py")
intervals = script_module("benchmarks/intervals.py")
T = 4.302653  # quantile 0.975 of Student's t with 2 degrees of freedom, from a table


def row(name: str, value: float, error: float | None) -> dict:
    return {"name": name, "family": name[0], "figures": {"nats": [value, error]}}


def test_an_interval_by_hand():
    """Families a (1, 3) and b (5, 5): variances 2 and 0, pooled 1 with 2 degrees of freedom, where t is 4.30."""
    rows = [row("a1", 1, 0.3), row("a2", 3, 0.4), row("b1", 5, None), row("b2", 5, None)]
    found = intervals.of_families(rows)
    error = math.sqrt((0.09 + 0.16) / 2)
    assert found["a"]["nats"] == pytest.approx((2, math.hypot(1.96 * error, T / math.sqrt(2))))
    assert found["b"]["nats"] == pytest.approx((5, T / math.sqrt(2)))
    answers = {name: {"nats": np.array(values)} for name, values in
               {"a1": [0, 2], "a2": [2, 4], "b1": [4, 6], "b2": [4, 6]}.items()}  # fmt: skip
    assert intervals.differences(rows, {})["b"]["nats"] == pytest.approx((3, T))
    assert intervals.differences(rows, answers)["b"]["nats"] == pytest.approx((3, T)), "all examples differ alike"
    answers["b2"]["nats"] = np.array([4, 8])  # the examples differ by 3 and 4: 3.5 with a standard error of 0.5
    assert intervals.differences(rows, answers)["b"]["nats"] == pytest.approx((3.5, math.hypot(1.96 * 0.5, T)))


def test_one_example_has_no_spread():
    rows, answers = (
        [row("a1", 1, None), row("b1", 2, None)],
        {n: {"nats": np.array([v])} for n, v in (("a1", 1), ("b1", 2))},
    )
    assert intervals.differences(rows, answers)["b"]["nats"] == (1, 0)


def test_one_seed_has_no_spread():
    rows = [row("a1", 1, 0.1), row("b1", 2, 0.2)]
    assert intervals.of_families(rows)["b"]["nats"] == pytest.approx((2, 1.96 * 0.2))


def test_windows_lie_in_one_document(held_out, tmp_path):
    tokens = np.load(families.cut_windows(held_out, tmp_path, 100, 7)).reshape(-1, 101)
    kept = describe_tokenizer(held_out)
    assert kept is not None and len(tokens) == 7
    for window in tokens:
        text = kept.load().decode(window.tolist())
        assert sum(text in document(i) for i in range(40)) == 1
    assert len({tuple(window) for window in tokens.tolist()}) == 7


@pytest.fixture
def swept(trained, tmp_path):
    """A sweep of two rows, and one that has not ended; all are one run."""
    for i, name in enumerate(("one_1", "two_1", "two_2")):
        run = tmp_path / "sweep" / name / "run"
        shutil.copytree(trained, run, ignore=shutil.ignore_patterns("evals"))
        said = {"name": name, "train_model": name[:3], "seed": name[-1]}
        (run.parent / "row.json").write_text(json.dumps(said))
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"finished": i < 2, "metric/val_loss@1x": 3.0}))
    return tmp_path / "sweep"


def test_a_judged_sweep(swept, held_out, tmp_path, capsys):
    """Equal runs do not differ; phonebooks do not fit into the context, which is told and stops nothing else."""
    out = tmp_path / "judged"
    families.main(swept, held_out, out, length=64, questions=6, base="two")
    said = capsys.readouterr()
    assert "do not fit into max_length 64" in said.err and "one_1: phonebook took" in said.err
    found = json.loads((out / "families.json").read_text())
    names = [(run["name"], run["family"], run["seed"]) for run in found["runs"]]
    assert names == [("two_1", "two", 1), ("one_1", "one", 1)], "what others are compared with stands first"
    assert [run["name"] for run in found["runs"] if "contaminated" in run] == ["one_1"], "the first that is judged"
    assert found["families"]["one"] == found["families"]["two"]
    assert {"val_loss", "bpb@16", "bpb@64", "choice_acc", "loss"} <= set(found["differences"]["one"])
    assert all(pair == [0, 0] for name, pair in found["differences"]["one"].items() if "@" in name)
    assert found["families"]["one"]["bpb@64"][0] > 0 and found["families"]["one"]["bpb@64"][1] > 0
    assert (out / "families.txt").read_text().splitlines()[0].split() == ["figure", "two", "one", "one", "-", "two"]
    assert (out / "families.txt").read_text() in said.out
    picture = tmp_path / "families.png"
    assert exit_code(plot.main, [str(out / "families.json"), "--output", str(picture)]) == 0
    assert 10_000 < picture.stat().st_size < 300_000


def test_what_cannot_be_judged(swept, held_out, tmp_path, capsys):
    shutil.rmtree(swept / "one_1")
    shutil.rmtree(swept / "two_1")
    words = ["--sweep", str(swept), "--data", held_out, "--output", str(tmp_path / "out"), "--length", "64"]
    run = families.command_of(families.main)
    assert exit_code(run, words) == 2
    assert "No run in" in capsys.readouterr().err
    assert exit_code(run, [*words, "--length", "100000"]) == 2
    assert "No document in the validation data" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("[]")
    assert exit_code(plot.main, [str(tmp_path / "no.json")]) == 2
    assert "is no file of benchmarks/families.py" in capsys.readouterr().err
