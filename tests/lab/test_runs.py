"""Runs of folders and of CSV files as rows, also of what has not ended."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lab_runs import SUMMARY, make_run

from lit_gpt.data.corpus import Corpus
from lit_gpt.data.discover import open_corpus
from lit_gpt.data.formats.packed import write_shard
from lit_gpt.errors import UserError
from lit_gpt.evals.results import Metric, Result, Subject, save
from lit_gpt.lab.runs import column, read_runs
from lit_gpt.lab.tables import curves
from lit_gpt.train.lease import take_lease


def only(path: Path):
    (run,) = read_runs([path])
    return run


def test_numbers_of_a_finished_run(tmp_path: Path) -> None:
    run = only(make_run(tmp_path / "run"))
    expected = {
        "loss": 2.0, "bpb": 1.0, "train_loss": 2.1, "tokens": 2048, "steps": 4, "parameters": 90, "parameters_all": 160,
        "flops": 2048 * 1000.0, "flops_6nd": 6 * 90 * 2048, "batch": 512, "rate": 0.01, "weight_decay": 0.1, "depth": 2,
        "width": 32, "context": 64, "seed": 1, "data_seed": 1, "tokens_per_sec": 50, "seconds": 40,
        "parameters_total": 100, "sparsity": 1, "granularity": 1,
    }  # fmt: skip
    assert dict(run.numbers) == expected
    assert (run.name, run.state, run.value("optimizer"), run.value("nothing")) == ("run", "finished", "adamw", None)
    assert column([run], "loss").tolist() == [2.0]
    with pytest.raises(UserError, match=r"1 of 1 runs have no number 'los', such as run. Did you mean 'loss'"):
        column([run], "los")


def test_a_row_of_a_study_names_its_run_and_adds_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "study/d2_a/run", row={"name": "d2_a", "depth": "2", "budget": "3x"}, base_hps={"eta0": 0.5})
    run = only(tmp_path / "study")
    assert (run.name, run.settings["budget"]) == ("d2_a", "3x")
    assert run.settings["depth"] == 2, "options keep their types"
    assert run.numbers["eta0"] == 0.5 and run.settings["base_hps.eta0"] == 0.5


LIVE = [
    {"step": 1, "total_tokens": 512, "metric/train_loss": 4.0},
    {"step": 2, "total_tokens": 1024, "metric/train_loss": None, "metric/val_loss@1x": 3.0},
    {"step": 3, "total_tokens": 1536, "metric/train_loss": 3.5},
]


def test_a_run_without_an_end_has_what_its_metrics_say_so_far(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary=None, metrics=LIVE)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "metric/tr')  # a crash
    run = only(folder)
    assert run.state == "died"
    assert [run.numbers[key] for key in ("loss", "train_loss", "tokens", "steps")] == [3.0, 3.5, 1536, 3]
    assert run.numbers["flops"] == 1536 * 1000.0


def test_a_run_that_goes_on_is_not_what_its_last_start_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary={**SUMMARY, "finished": False, "interrupted": True}, metrics=LIVE)
    assert only(folder).state == "cut" and only(folder).numbers["loss"] == 2.0
    lease = take_lease(folder)
    try:
        assert only(folder).state == "running" and only(folder).numbers["loss"] == 3.0
    finally:
        lease.close()
    assert only(folder).state == "cut"


def test_a_diverged_run(tmp_path: Path) -> None:
    summary = {**SUMMARY, "finished": False, "diverged": True, "train_loss": None, "metric/val_loss@1x": None}
    run = only(make_run(tmp_path / "run", summary=summary))
    assert run.state == "diverged" and "loss" not in run.numbers


def test_a_run_that_a_ladder_stopped_has_diverged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a/run", row={"name": "a"}, summary={**SUMMARY, "finished": False})
    assert only(tmp_path).state == "cut"
    (run.parent / "diverged.json").write_text('{"why": "the loss is no number since step 4"}')
    assert only(tmp_path).state == "diverged"


def test_a_folder_that_just_began(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary=None)
    (folder / "metrics.jsonl").unlink()
    assert only(folder).state == "died" and only(folder).numbers["depth"] == 2


def served(corpus: Corpus, samples: int) -> int:
    """Different targets among the first samples: places in the stream, one by one."""
    found: set[tuple[str, int]] = set()
    for index in range(samples):
        source, k = corpus.interleave.locate(index)
        start, stream = corpus.sources[source].start(k), corpus.sources[source].stream
        found |= {(corpus.sources[source].name, i) for i in range(start + 1, min(start + 65, stream.num_tokens))}
    return len(found)


@pytest.mark.parametrize("samples", [1, 7, 20, 61, 90, 400])
def test_unique_tokens_of_a_mixture_are_exact(tmp_path: Path, samples: int) -> None:
    """Two corpora, one of which is passed many times; the last window of each is short."""
    for name, tokens in (("a", 64 * 40 + 11), ("b", 64 * 9 + 2)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "train_0.bin", np.arange(tokens, dtype=np.uint16) % 50)
    mixture = tmp_path / "mixture.json"
    mixture.write_text(json.dumps({"a/train": 0.6, "b/train": 0.4}))
    corpus = open_corpus(str(tmp_path), "train", 64, 5, mixture=str(mixture))
    epochs = corpus.epochs(samples)
    folder = make_run(
        tmp_path / "run",
        plan={"seed": 3, "data_seed": 5},
        sources={s.name: s.stream.num_tokens for s in corpus.sources},
        metrics=[{"step": 1, **{f"data/epoch/{name}": value for name, value in epochs.items()}}],
    )
    run = only(folder)
    assert run.numbers["unique_tokens"] == served(corpus, samples)
    assert run.numbers["epochs"] == max(epochs.values())


def result(value: float, step: int, weights: str = "trained") -> Result:
    subject = Subject("run", "step", "0", weights, step, 64 * step)
    return Result("suite", 10, {"acc": Metric(value, 0.01)}, subject, {"weights": weights})


def test_evaluations_are_columns_and_the_newest_step_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", metrics=[{"step": 4, "eval/suite/acc": 0.1, "eval/phonebook/acc@20": 0.7}])
    assert only(folder).numbers["suite/acc"] == 0.1, "of the evaluations while training"
    for found in (result(0.3, 4), result(0.2, 2), result(0.5, 4, "ema_1B")):
        save(found, folder)
    numbers = only(folder).numbers
    assert {key: value for key, value in numbers.items() if "/" in key} == {
        "suite/acc": 0.3,
        "suite/acc_stderr": 0.01,
        "suite/acc_ema_1B": 0.5,
        "suite/acc_ema_1B_stderr": 0.01,
        "phonebook/acc@20": 0.7,
    }


def test_names_are_told_apart_and_a_run_counts_once(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        make_run(tmp_path / parent / "run")
    (tmp_path / "y/back").symlink_to(tmp_path)
    runs = read_runs([tmp_path, tmp_path / "x", tmp_path / "x/run"])
    assert [run.name for run in runs] == ["x/run", "y/run"]


def csv_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_with_a_line_for_each_run(tmp_path: Path) -> None:
    """As Weights & Biases exports its table of runs, with a mark of byte order."""
    text = "\ufeffName,State,learning_rate,base_hps.eta0,total_tokens,metric/val_loss@1x,train_model\n"
    text += '"a, first",finished,0.01,0.02,1e9,2.5,samba\nb,crashed,0.01,0.02,,NaN,samba\n'
    a, b = read_runs([csv_file(tmp_path / "runs.csv", text)])
    assert (a.name, a.state, a.settings) == ("a, first", "finished", {"train_model": "samba"})
    assert dict(a.numbers) == {"rate": 0.01, "eta0": 0.02, "tokens": 1e9, "loss": 2.5}
    assert (b.name, b.state) == ("b", "died") and "loss" not in b.numbers and "tokens" not in b.numbers


def test_an_exported_chart_has_a_column_for_each_run(tmp_path: Path) -> None:
    columns = ["Step", "d8 - lr - metric/val_loss@1x", "d8 - lr - metric/val_loss@1x__MIN", "d16 - metric/val_loss@1x"]
    text = ",".join(f'"{name}"' for name in columns) + "\n10,3.0,2.9,\n20,2.5,2.4,2.75\n30,,,NaN\n"
    path = csv_file(tmp_path / "chart.csv", text)
    first, second = read_runs([path])
    assert (first.name, dict(first.numbers)) == ("d8 - lr", {"loss": 2.5, "steps": 20})
    assert (second.name, dict(second.numbers)) == ("d16", {"loss": 2.75, "steps": 20})
    assert (first.state, second.state) == ("finished", "diverged"), "its last loss is no number"
    curve = curves(path)["d8 - lr"]["metric/val_loss@1x"]
    assert (curve.over, curve.x.tolist(), curve.y.tolist()) == ("Step", [10.0, 20.0], [3.0, 2.5])


def test_compute_and_size_follow_from_each_other_in_a_table(tmp_path: Path) -> None:
    a, b = read_runs([csv_file(tmp_path / "t.csv", "N,C,loss,tokens,training flops\n1e6,9,3,2e7,\n1e6,9,3,,6e13\n")])
    assert a.numbers["flops_6nd"] == 6 * 1e6 * 2e7 and a.numbers["flops"] == 9
    assert math.isclose(b.numbers["tokens"], 1e7)
    assert [a.name, b.name] == ["t:2", "t:3"]
    (c,) = read_runs([csv_file(tmp_path / "t.csv", "lr,learning_rate,val_loss,Loss,\n1,1,3,2,\n")])
    assert c.numbers == {"rate": 1, "loss": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1\n", "line 2: the number of cells"),
        ("a,b\n1,2,3\n", "line 2"),
        ("", "There is no run"),
        ("a,b\n", "no run"),
        ("loss,tokens,loss\n3,1,2\n", "has 2 columns called 'loss'"),
        ("flops;loss\n1;2\n", "separated by ';'"),
        ("flops\tloss\n1\t2\n", "separated by"),
        ("lr,learning_rate\n1,2\n", r"t:2: 'lr' is 1 and 'learning_rate' is 2, and both mean rate"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_runs([csv_file(tmp_path / "t.csv", text)])


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no run in .*Give run folders"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is no exported chart"):
        curves(csv_file(tmp_path / "t.csv", "a,b\n1,2\n"))
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("file", "text"), [("environment.json", '{"data": 3}'), ("summary.json", '{"tokens": "many"}')]
)
def test_files_of_another_shape_are_a_sentence(file: str, text: str, tmp_path: Path) -> None:
    (make_run(tmp_path / "run", sources={"text": 4096}) / file).write_text(text)
    with pytest.raises(UserError, match="writes them"):
        read_runs([tmp_path])
