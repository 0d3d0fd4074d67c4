"""metrics.jsonl and metrics.csv read as one uninterrupted run; trackers never stop training."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.summary import read_metrics, write_summary
from lit_gpt.metrics.trackers import check_installed


def make(folder: Path, *names: str, resume_step: int = 0, config: dict[str, Any] | None = None, **of: Any) -> Sinks:
    named = {"run_name": "run", "project": "p", **of}
    return Sinks(folder, names, config=config or {"depth": 8}, resume_step=resume_step, **named)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_before_close_and_is_strict_json(tmp_path: Path):
    sinks = make(tmp_path)
    sinks.log({"metric/train_loss": float("nan"), "a": float("inf"), "b": 0.1}, step=1)
    (row,) = records(tmp_path)
    assert (row["step"], row["metric/train_loss"], row["a"], row["b"]) == (1, None, None, 0.1)
    assert row["time"] > 1.6e9
    sinks.close()


def test_val_loss_of_the_csv_is_the_newest_one(tmp_path: Path):
    """A script reads its last cell, or its lowest; a resumed run has it from its first row on."""
    logged = [{"loss": 4.0}, {"metric/val_loss@1x": 3.5}, {"loss": 3.0}, {"metric/val_loss@1x": 2.5}, {"loss": 2.0}]
    first = make(tmp_path, "csv")
    for step, values in enumerate(logged):
        first.log(values, step)
    first.close()
    second = make(tmp_path, "csv", resume_step=2)
    for step, values in enumerate([*logged[3:], {"metric/val_loss@1x": float("nan")}, {"loss": 1.0}], 3):
        second.log(values, step)
    second.close()
    table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["val_loss"] for row in table] == ["", "3.5", "3.5", "2.5", "2.5", "", ""], "a diverged run has none"


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo'])
def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path, torn: str):
    first = make(tmp_path, "csv")
    for step in (1, 2, 3, 4):
        first.log({"loss": float(step)}, step)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    second = make(tmp_path, "csv", resume_step=2)
    second.log({"loss": 30.0}, 3)
    second.close()
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(r["step"], r["loss"]) for r in table] == [("1", "1.0"), ("2", "2.0"), ("3", "30.0")]


def test_a_new_run_starts_afresh(tmp_path: Path):
    for value in (1.0, 2.0):
        sinks = make(tmp_path)
        sinks.log({"loss": value}, 0)
        sinks.close()
    assert [r["loss"] for r in records(tmp_path)] == [2.0]


def test_csv_header_grows(tmp_path: Path):
    sinks = make(tmp_path, "csv")
    sinks.log({"loss": 3.0}, 1)
    sinks.log({"loss": 2.0, "metric/val_loss@1x": 2.5}, 2)
    sinks.log({"loss": 1.0}, 3)
    sinks.close()
    table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert list(table[0]) == ["step", "time", "loss", "metric/val_loss@1x", "val_loss"]
    assert [r["loss"] for r in table] == ["3.0", "2.0", "1.0"]
    assert [r["metric/val_loss@1x"] for r in table] == ["", "2.5", ""]
    assert not list(tmp_path.glob(".*tmp"))


def test_unknown_logger_names_the_choices(tmp_path: Path):
    with pytest.raises(UserError, match=r"'wandbb'.*Did you mean 'wandb'.*csv, tensorboard"):
        make(tmp_path, "wandbb")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'scalelab\[log\]'"):
        make(tmp_path, name)
    assert not (tmp_path / "metrics.jsonl").exists()


class FakeWandb(ModuleType):
    """Keeps what it is told; `broken` makes every log call fail."""

    def __init__(self, broken: bool = False):
        super().__init__("wandb")
        self.broken, self.inits, self.logged, self.key = broken, [], [], "a key"

    def login(self, *, prompt: bool) -> bool:
        assert not prompt, "a run on a cluster has nobody to answer"
        return bool(self.key)

    def init(self, **options: Any) -> SimpleNamespace:
        self.inits.append(options)
        return SimpleNamespace(
            id=options["id"] or f"id{len(self.inits)}",
            define_metric=lambda *a, **k: None,
            log=self._log,
            finish=lambda: None,
        )

    def _log(self, values: dict[str, float]) -> None:
        if self.broken:
            raise ConnectionError("no route")
        self.logged.append(values)

    def Table(self, columns: list[str], data: list[list[str]]) -> tuple[list[str], list[list[str]]]:
        return columns, data


def test_texts_are_a_table_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sinks = make(tmp_path, "wandb")
    sinks.texts([("a", "b")], 7)
    sinks.close()
    assert fake.logged == [{"samples": (["prompt", "text"], [["a", "b"]]), "trainer/global_step": 7}]


def test_wandb_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (0, 1, 0):
        sinks = make(tmp_path, "wandb", resume_step=resume_step)
        sinks.log({"loss": 1.0}, resume_step + 1)
        sinks.close()
    assert [o["id"] for o in fake.inits] == [None, "id1", None]
    assert fake.inits[0]["config"] == {"depth": 8}
    assert fake.logged[1] == {"loss": 1.0, "trainer/global_step": 2}


def test_wandb_without_a_login_stays_here_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """It asked for a key on a terminal, where it hung, and gave up on the run elsewhere."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    make(tmp_path, "wandb").close()
    fake.key = ""
    make(tmp_path, "wandb").close()
    monkeypatch.setenv("WANDB_MODE", "offline")  # somebody has decided
    make(tmp_path, "wandb").close()
    assert [o["mode"] for o in fake.inits] == [None, "offline", None]
    (note,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"note: there is no wandb login, .* kept in {tmp_path}/wandb\. .* wandb sync {tmp_path}/.*", note
    )


def test_a_run_has_a_group_and_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows of a sweep were runs of one name, and of no group."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    make(tmp_path, "wandb", run_name="row", entity="team", group="sweep", tags=["a", "b"]).close()
    make(tmp_path, "wandb").close()
    keys = ("name", "entity", "group", "tags")
    assert [[o[key] for key in keys] for o in fake.inits] == [
        ["row", "team", "sweep", ("a", "b")],
        ["run", None, None, None],
    ]


def test_mlflow_keeps_a_run_in_a_local_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the `log` extra is installed. mlflow-skinny alone refuses both its own default, a database, and folders."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    config = {"depth": 8, "plan": {"roles": {f"r{i}": {"lr": 0.1} for i in range(150)}}}
    for resume_step in (0, 7):
        sinks = make(tmp_path, "mlflow", config=config, resume_step=resume_step, group="sweep", tags=["a"])
        sinks.log({"metric/val_loss@1x": 2.5}, resume_step + 7)
        sinks.texts([("a prompt", " and its text")], resume_step + 7)
        sinks.close()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id], "tags.group = 'sweep'")
    assert (run.info.run_name, run.data.tags["a"], run.info.status) == ("run", "true", "FINISHED")
    assert len(run.data.params) == 151 and run.data.params["plan.roles.r7.lr"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "metric/val_loss_at_1x")
    assert [(m.step, m.value) for m in history] == [(7, 2.5), (14, 2.5)]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/samples/step-000014.txt") == "a prompt and its text"


def test_mlflow_on_this_machine_needs_a_database(monkeypatch: pytest.MonkeyPatch):
    """Found before the run, not as a warning of its logger; a server needs neither package."""
    for name in ("mlflow", "sqlalchemy", "alembic"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_installed(["mlflow"])
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(UserError, match=r"mlflow logger .*alembic.* pip install 'scalelab\[log\]'"):
        check_installed(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    check_installed(["mlflow", "csv"])


def test_a_failing_tracker_warns_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    sinks = make(tmp_path, "wandb")
    with pytest.warns(UserWarning, match="wandb logger (failed|has not everything)") as caught:
        sinks.log({"loss": 1.0}, 1)
        sinks.log({"loss": 2.0}, 2)
        sinks.close()
    assert [str(w.message).split(" (")[0] for w in caught] == [
        "The wandb logger failed",
        "The wandb logger has not everything",
    ]
    assert [r["loss"] for r in records(tmp_path)] == [1.0, 2.0]


def test_real_trackers_write_offline(tmp_path: Path):
    """Runs where the `log` extra is installed: events can be read back by tensorboard itself."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sinks = make(tmp_path, "tensorboard")
    sinks.log({"metric/val_loss@1x": 2.5}, 7)
    sinks.texts([("a prompt", " and its text")], 7)
    sinks.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("metric/val_loss@1x")] == [(7, 2.5)]
    (text,) = events.Tensors("samples/0/text_summary")
    assert text.step == 7 and b"a prompt and its text" in text.tensor_proto.string_val[0]


def test_read_metrics_merges_steps_and_survives_a_cut(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "time": 5, "loss": 3.0}\n{"step": 2, "time": 6, "loss": null}\n'
        '{"step": 2, "time": 7, "val": 2.5}\n{"step": 3, "time": 8, "lo'
    )
    found = read_metrics(tmp_path)
    assert found["step"].tolist() == [1, 2]
    assert found["time"].tolist() == [5, 7]
    np.testing.assert_array_equal(found["loss"], [3.0, np.nan])
    np.testing.assert_array_equal(found["val"], [np.nan, 2.5])


@pytest.mark.filterwarnings("ignore:.*lines that are no records")
@pytest.mark.parametrize("text", [None, "", "oops\n{}\n"])
def test_read_metrics_refuses_what_is_no_log(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_summary_is_strict_json(tmp_path: Path):
    path = write_summary(tmp_path, {"loss": float("nan"), "n": {"p": np.float32(1.5)}, "out": tmp_path})
    assert json.loads(path.read_text()) == {"loss": None, "n": {"p": 1.5}, "out": str(tmp_path)}
