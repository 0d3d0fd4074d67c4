"""metrics.jsonl and metrics.csv read as one uninterrupted run; trackers never stop training."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.summary import read_metrics, write_summary


def make(folder: Path, *names: str, resume_step: int = 0, config: dict[str, Any] | None = None) -> Sinks:
    return Sinks(folder, names, run_name="run", project="p", config=config or {"depth": 8}, resume_step=resume_step)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_before_close_and_is_strict_json(tmp_path: Path):
    sinks = make(tmp_path)
    sinks.log({"metric/train_loss": float("nan"), "a": float("inf"), "b": 0.1}, step=1)
    (row,) = records(tmp_path)
    assert (row["step"], row["metric/train_loss"], row["a"], row["b"]) == (1, None, None, 0.1)
    assert row["time"] > 1.6e9
    sinks.close()


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
    assert list(table[0]) == ["step", "time", "loss", "metric/val_loss@1x"]
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


def test_a_failing_tracker_warns_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    sinks = make(tmp_path, "wandb")
    with pytest.warns(UserWarning, match="wandb logger failed") as caught:
        sinks.log({"loss": 1.0}, 1)
        sinks.log({"loss": 2.0}, 2)
    sinks.close()
    assert len(caught) == 1
    assert [r["loss"] for r in records(tmp_path)] == [1.0, 2.0]


def test_real_trackers_write_offline(tmp_path: Path):
    """Runs where the `log` extra is installed: events can be read back by tensorboard itself."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sinks = make(tmp_path, "tensorboard")
    sinks.log({"metric/val_loss@1x": 2.5}, 7)
    sinks.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("metric/val_loss@1x")] == [(7, 2.5)]


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


@pytest.mark.parametrize("text", [None, "", "oops\n{}\n"])
def test_read_metrics_refuses_what_is_no_log(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_summary_is_strict_json(tmp_path: Path):
    path = write_summary(tmp_path, {"loss": float("nan"), "n": {"p": np.float32(1.5)}, "out": tmp_path})
    assert json.loads(path.read_text()) == {"loss": None, "n": {"p": 1.5}, "out": str(tmp_path)}
