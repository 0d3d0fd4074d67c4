"""The queue of measurements: order, needs, failures, time; and that its own table can run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from script_module import script_module
from spawn import ended, forked

import pretrain
from lit_gpt.config.command import exit_code
from lit_gpt.lab import local

reproduce, ladder = script_module("benchmarks/reproduce.py"), script_module("launch_scripts/ladder.py")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(local, "LOOK_EVERY", 0.1)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes rows of name, gpus, minutes, needs, command, and makes them the table."""

    def write(*rows: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text("name,gpus,minutes,needs,command\n" + "\n".join(rows) + "\n")
        monkeypatch.setattr(reproduce, "TABLE", path)
        return tmp_path / "out"

    return write


def test_jobs_run_when_they_can_and_once(table, capsys) -> None:
    out = table(
        "a.one,1,1,,echo $CUDA_VISIBLE_DEVICES > {out}/one",
        "a.two,2,1,a.one,echo $CUDA_VISIBLE_DEVICES > {out}/two",
        "late,0,1,a.two,cat {out}/one {out}/two > {out}/both",
        "many,1-4,1,late,echo {gpus} > {out}/many",
    )
    assert reproduce.main(out, gpus="5,7") == 0
    one, two = (out / "both").read_text().splitlines()
    assert one in ("5", "7") and sorted(two.split(",")) == ["5", "7"]
    assert sorted((out / "many").read_text().strip().split(",")) == ["5", "7"]
    (out / "both").unlink()
    assert reproduce.main(out, gpus="5,7") == 0 and not (out / "both").exists()
    assert "late: finished before" in capsys.readouterr().out


def test_what_fails_is_said_and_what_needs_it_is_not_reached(table, capsys) -> None:
    out = table(
        "bad,1,1,,echo x >> {out}/bad; exit 3", "after,1,1,bad,touch {out}/never", "slow,1,0.005,,sleep 60",
        "big,9,1,,true", "flaky,1,1,,test -e {out}/once || { touch {out}/once; false; }",
    )  # fmt: skip
    assert reproduce.main(out) == 1
    said = capsys.readouterr().out
    assert "1 of 5 jobs done" in said and "bad: ended with exit code 1" in said and "\n  bad: failed" in said
    assert "\n  after: failed" in said and "\n  slow: out of time" in said and "\n  big: not reached" in said
    assert (out / "bad").read_text() == "x\nx\n" and not (out / "never").exists()


def test_a_job_whose_runner_was_killed_goes_on_and_is_not_started_again(table) -> None:
    """Two of these commands at once, of which one is killed."""
    out = table("long,1,1,,echo x >> {out}/long; sleep 2; echo y >> {out}/long")
    runner = forked(lambda: reproduce.main(out))
    while not (out / "long").exists():
        time.sleep(0.05)
    os.kill(runner, signal.SIGKILL)
    assert ended(runner) == -signal.SIGKILL
    assert reproduce.main(out) == 0
    assert (out / "long").read_text() == "x\ny\n"


def test_time_ends_for_all(table) -> None:
    out = table("long,1,1,,sleep 60", "next,1,1,,true")
    assert reproduce.main(out, minutes=0.005) == 1 and not list(out.glob("jobs/*/run/summary.json"))


def test_rows_of_parts_are_joined(table) -> None:
    out = table("any,1,1,,true")
    out.mkdir()
    for name, value in {"k.a": {"device": "D", "rows": [1]}, "k.b": {"device": "D", "rows": [2]}, "t.a": [3]}.items():
        (out / f"{name}.json").write_text(json.dumps(value))
    assert reproduce.main(out) == 0
    assert json.loads((out / "k.json").read_text()) == {"device": "D", "rows": [1, 2]}
    assert json.loads((out / "t.json").read_text()) == {"rows": [3]}


def test_unknown_jobs_and_a_missing_corpus(tmp_path, capsys) -> None:
    assert exit_code(lambda words: reproduce.main(tmp_path / "out", only="kernel"), []) == 2
    assert "Did you mean 'kernels" in capsys.readouterr().err
    assert exit_code(lambda words: reproduce.main(tmp_path / "out", only="compare"), []) == 2
    assert "Give --text FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_groups_and_needs_are_chosen() -> None:
    names = [job.name for job in reproduce.choose("compare,moe")]
    assert names == ["corpus4k", "moe", "compare.runs", "compare.judged", "compare"]
    kernels = ["kernels.gdn", "kernels.kda", "kernels.linear", "kernels.others"]
    assert [job.name for job in reproduce.choose("kernels")] == kernels


@pytest.mark.parametrize("job", reproduce.jobs(), ids=lambda job: job.name)
def test_the_tables_own_jobs(job, capsys) -> None:
    """Scripts and recipes exist; what trains has a Plan; a need comes before what needs it."""
    names = [each.name for each in reproduce.jobs()]
    assert not job.needs or names.index(job.needs) < names.index(job.name)
    words = shlex.split(job.command)
    files = [w for w in words if w.endswith((".py", ".csv", ".yaml")) and not w.startswith("{out}") and w != "*.py"]
    assert all((ROOT / file).is_file() for file in files)
    recipe = [str(ROOT / file) for file in files if file.endswith(".yaml")]
    if "launch_scripts/ladder.py" in words:  # tests/lab/test_ready_studies.py plans the studies
        given, of_runs = ladder.read(words[words.index("launch_scripts/ladder.py") + 1 :])
        assert given.action == "run" and of_runs[0] == "--train_data_dir"
    elif recipe:
        rest = words[words.index(recipe[0].removeprefix(f"{ROOT}/")) + 1 :]
        assert pretrain.main(["--config", *recipe, *rest, "--depth", "8", "--dry_run", "true"]) == 0, (
            capsys.readouterr().err
        )
