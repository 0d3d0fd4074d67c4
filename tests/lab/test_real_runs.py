"""Real runs of a small model under a ladder: a trunk with forks, and kills of everything."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
from spawn import ended, forked

from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.planning import plan_rows
from lit_gpt.lab.processes import Settings
from lit_gpt.lab.rows import run_folder_of
from lit_gpt.lab.runs import FINISHED, column, read_runs
from lit_gpt.lab.study import Study, read_study
from lit_gpt.metrics.summary import read_rows

CPUS = Settings(devices=(("cpu",), ("cpu",)), tries=1)
BASE = {key: value for key, value in tiny_run.OPTIONS.items() if key not in ("depth", "max_tokens")}


def study(tmp_path: Path, parts: str) -> Study:
    data = tiny_run.make_corpus(tmp_path / "text")
    base = {**BASE, "ar": 8, "train_data_dir": str(data), "val_data_dir": str(data), "num_extrp": 1}
    (tmp_path / "study.yaml").write_text(f"base: {base}\n{parts}")
    return read_study(tmp_path / "study.yaml", {})


# pretrain.py that draws no figure of its losses, a second of a run of five (test_curve.py and test_resume.py draw it),
# and does not come further than half of its steps while there is a file `hold` beside it.
DRIVER = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(tiny_run.ROOT)!r})
import pretrain
from lit_gpt.train import reporter
from lit_gpt.train.loop import Trainer

step = Trainer.step

def held(self, report):
    step(self, report)
    while self.progress.step == 30 and Path(__file__).with_name("hold").exists():
        time.sleep(0.02)

Trainer.step = held
reporter.draw_loss_curve = lambda *_: None
pretrain.command(sys.argv[1:])
"""


def with_driver(tmp_path: Path) -> Settings:
    (tmp_path / "driver.py").write_text(DRIVER)
    return replace(CPUS, program=tmp_path / "driver.py")


@pytest.mark.slow
def test_a_trunk_and_its_forks_are_runs_of_their_budgets(tmp_path: Path) -> None:
    found = study(tmp_path, "axes: {depth: [1], keep_last: [0]}\ntrunk: {tokens: [4096, 8192]}\nname: a")
    assert Ladder(found, tmp_path / "out").run(with_driver(tmp_path), plan_rows(found.rows)) == 0
    runs = {run.name: run for run in read_runs([tmp_path / "out"])}
    assert {name for name, run in runs.items() if run.settings.get("part") == "trunk"} == {"a_trunk1", "a_trunk2"}
    forks = [runs["a_b1"], runs["a_b2"]]
    assert list(column(forks, "tokens")) == [row.tokens for row in found.rows if row.part == "fork"]
    assert all(run.state == FINISHED and run.numbers["loss"] > 0 for run in forks)
    left = {path.parts[-4] for path in (tmp_path / "out").glob("*/*/checkpoints/*")}
    assert left == {"a_trunk1", "a_trunk2"}, "forks start from these"


@pytest.mark.slow
def test_kill_9_of_ladder_and_run_loses_nothing(tmp_path: Path) -> None:
    """The killed run goes on from its checkpoint; every step is in its metrics once."""
    steps = 60
    parts = f"axes: {{depth: [1]}}\nbudget: {{tokens: {512 * steps}}}\nname: a"
    found = study(tmp_path, parts.replace("depth: [1]", "depth: [1], save_step: [5]"))
    (tmp_path / "hold").touch()
    settings = with_driver(tmp_path)
    job = forked(lambda: Ladder(found, tmp_path / "out").run(settings))
    checkpoints, end = "a/*/checkpoints/step-*", time.monotonic() + 240
    while not list((tmp_path / "out").glob(checkpoints)):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(job, signal.SIGKILL)
    (run,) = read_runs([tmp_path / "out"])
    assert run.folder is not None
    lease = next(run.folder.glob("lease-*")).read_text()
    os.kill(int(lease.split('"pid": ')[1].split(",")[0]), signal.SIGKILL)
    assert ended(job) == -signal.SIGKILL
    (tmp_path / "hold").unlink()
    assert Ladder(found, tmp_path / "out").run(settings) == 0
    (run,) = read_runs([tmp_path / "out"])
    assert run.folder is not None
    assert run.state == FINISHED and run.folder == run_folder_of(tmp_path / "out/a")
    logged = [row["step"] for row in read_rows(run.folder / "metrics.jsonl") if "metric/train_loss" in row]
    assert logged == list(range(1, steps + 1))
