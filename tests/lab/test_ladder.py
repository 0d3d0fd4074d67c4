"""The ladder with a stand-in for pretrain.py: nothing is lost and nothing is done twice, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from spawn import ended, forked

from lit_gpt.errors import UserError
from lit_gpt.lab import local, queue
from lit_gpt.lab.display import Display
from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.processes import TORCHRUN, Settings, command, devices_of, environment
from lit_gpt.lab.refine import Refine
from lit_gpt.lab.rows import Row
from lit_gpt.lab.study import Study
from lit_gpt.train import lease

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOK_EVERY", 0.1)


def rows_of(**options: dict[str, Any]) -> tuple[Row, ...]:
    return tuple(Row(name, given) for name, given in options.items())


def run(output: Path, rows: tuple[Row, ...], **settings: Any) -> int:
    chosen = {"devices": (("cpu",),), "program": STAND_IN, "minutes": 5, **settings}
    return Ladder(Study(rows), output).run(Settings(**chosen))


class Apart:
    """A ladder in a process of its own, that can be killed; a fork of this one, so that it starts at once."""

    def __init__(self, output: Path, rows: dict[str, Any], places: int = 2) -> None:
        self.said = output.parent / f"{output.name}.said"

        def ladder() -> int:
            os.dup2(os.open(self.said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            sys.stdout = os.fdopen(1, "w")
            code = run(output, rows_of(**rows), devices=(("cpu",),) * places, tries=2)
            sys.stdout.flush()
            return code

        self.pid = forked(ladder)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; negative where a signal ended it."""
        return ended(self.pid)


def calls(output: Path, name: str) -> list[str]:
    file = output / name / "run/calls"
    return file.read_text().splitlines() if file.exists() else []


def steps(output: Path, name: str) -> list[int]:
    file = output / name / "run/steps"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_finished_rows_are_skipped_and_failed_ones_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = rows_of(good={"loss": 2}, flaky={"fails": 1, "loss": 1}, bad={"fails": 9})
    assert run(tmp_path, rows, tries=2) == 1
    assert [len(calls(tmp_path, row.name)) for row in rows] == [1, 2, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["flaky", "good", "bad"]
    assert run(tmp_path, rows[:2]) == 0
    assert [len(calls(tmp_path, row.name)) for row in rows] == [1, 2, 2]


def test_named_rows_run_in_the_order_of_their_names(tmp_path: Path) -> None:
    """What one of them goes on from comes first."""
    trunk, a, b, c = rows_of(trunk={}, a={}, b={}, c={})
    study = Study((trunk, a, replace(b, after="trunk"), c))
    names = [row.name for row in Ladder(study, tmp_path, only=("c", "b", "a")).chosen()]
    assert names == ["trunk", "c", "b", "a"]


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    assert run(tmp_path, rows_of(wrong={"code": 2}), tries=5) == 1
    assert len(calls(tmp_path, "wrong")) == 1


def test_a_row_that_was_refused_takes_other_options(tmp_path: Path) -> None:
    """Its folder "was run with other options", so that a corrected table could not run."""
    refuses = tmp_path / "refuses.py"
    refuses.write_text("import sys\nsys.exit(2)\n")
    assert run(tmp_path / "out", rows_of(a={"seed": 1}), program=refuses) == 1
    assert run(tmp_path / "out", rows_of(a={"seed": 2})) == 0
    with pytest.raises(UserError, match="other options"):
        run(tmp_path / "out", rows_of(a={"seed": 3}))


def test_why_a_run_failed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the exit code was, and the sentence that says what to type was in the log of each of a hundred runs."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import sys\nif '--traced' in sys.argv:\n    raise ValueError('bad luck')\n"
        "print('error: No data here. Type more.\\nand a second line', file=sys.stderr)\nsys.exit(2)\n"
    )
    assert run(tmp_path / "out", rows_of(typed={}, broken={"traced": 1}), program=wrong) == 1
    said = capsys.readouterr().out
    assert "typed: ended with exit code 2: error: No data here. Type more.\n" in said
    assert "broken: ended with exit code 1: ValueError: bad luck\n" in said
    log = tmp_path / "out" / "typed" / "log.txt"
    assert local.last_error(log, log.stat().st_size) == ""  # what an earlier start said is not why this one ended


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (["error: No data."], "error: No data."),
        (["[rank1]: Traceback (most recent call last):", "[rank1]: AssertionError"], "[rank1]: AssertionError"),
        (["[rank0]: torch.distributed.DistBackendError: NCCL."], "[rank0]: torch.distributed.DistBackendError: NCCL."),
        (["rank 0: error: in step 4, nothing moved."], "rank 0: error: in step 4, nothing moved."),
    ],
)
def test_why_a_run_failed_is_what_its_processes_said_and_not_torchrun(
    said: list[str], found: str, tmp_path: Path
) -> None:
    """What torch 2.13's torchrun ends with is the end of a traceback, too."""
    log = tmp_path / "log.txt"
    after = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    log.write_text("\n".join([*said, after, "=" * 60, "pretrain.py FAILED", "  exitcode  : 2 (pid: 1031) "]) + "\n")
    assert local.last_error(log, 0) == found


def test_a_run_that_takes_too_long_is_stopped_and_goes_on_next_time(tmp_path: Path, monkeypatch: Any) -> None:
    """It has trained, and an hour has gone by."""
    rows, go = rows_of(slow={"steps": 20, "pause": 0.05, "waits": str(tmp_path / "go")}), tmp_path / "go"
    with monkeypatch.context() as patch:
        late = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * bool(steps(tmp_path, "slow")))
        patch.setattr(local, "time", late)
        assert run(tmp_path, rows, minutes=30, tries=3) == 1
    assert len(calls(tmp_path, "slow")) == 1 and not (tmp_path / "slow/run/summary.json").exists()
    go.touch()
    assert run(tmp_path, rows) == 0
    assert steps(tmp_path, "slow") == list(range(1, 21))


@pytest.mark.parametrize(
    "losses", [["2"] + ["3"] * 60, ["2", "1"] + ["nan"] * 60], ids=["above its start", "no number"]
)
def test_a_diverged_run_is_stopped_and_said_so(losses: list[str], tmp_path: Path, capsys: Any) -> None:
    row = {"steps": 60, "losses": ",".join(losses), "waits": str(tmp_path / "never")}
    assert run(tmp_path, rows_of(wild=row)) == 0
    assert "diverged: the loss is" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "wild/run/summary.json").exists()
    assert run(tmp_path, rows_of(wild=row)) == 0
    assert len(calls(tmp_path, "wild")) == 1


def test_a_run_whose_gradients_are_no_numbers_has_diverged(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, rows_of(wild={"code": 4})) == 0
    assert "diverged" in capsys.readouterr().out.splitlines()[-1]


def test_a_spike_is_no_divergence(tmp_path: Path) -> None:
    losses = ["2", "1.5", *["4"] * 10, *["1"] * 10, *["3"] * 10, "1"]
    assert run(tmp_path, rows_of(spiky={"steps": 33, "losses": ",".join(losses)})) == 0
    assert len(steps(tmp_path, "spiky")) == 33


def test_a_fork_whose_first_loss_was_lucky_goes_on(tmp_path: Path) -> None:
    losses = ",".join(["1.0"] + ["1.2"] * 40)
    rows = (Row("trunk"), Row("fork", {"steps": 41, "losses": losses, "pause": 0.05}, after="trunk"))
    assert run(tmp_path, rows) == 0
    assert len(steps(tmp_path, "fork")) == 41


def test_a_killed_run_is_started_again_and_loses_nothing(tmp_path: Path) -> None:
    job = Apart(tmp_path, {"a": {"steps": 8, "pause": 0.1, "waits": str(tmp_path / "go")}})
    wait_for(lambda: len(steps(tmp_path, "a")) >= 2)
    os.kill(int(calls(tmp_path, "a")[0].split()[0]), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert job.wait() == 0
    assert steps(tmp_path, "a") == list(range(1, 9))
    assert len(calls(tmp_path, "a")) == 2


def test_runs_go_on_when_their_ladder_is_killed_and_the_next_one_waits_for_them(tmp_path: Path) -> None:
    long = {"steps": 15, "pause": 0.1, "waits": str(tmp_path / "go")}
    rows = {"c": {}, "a": long, "b": long}
    job = Apart(tmp_path, rows, places=3)
    wait_for(lambda: steps(tmp_path, "a") and steps(tmp_path, "b") and "c: finished" in job.said.read_text())
    job.kill()
    assert job.wait() == -signal.SIGKILL
    after = Apart(tmp_path, rows)
    wait_for(lambda: after.said.read_text().count("goes on without its ladder") == 2)  # both write to one file
    (tmp_path / "go").touch()
    assert after.wait() == 0
    assert [steps(tmp_path, name) for name in "ab"] == [list(range(1, 16))] * 2
    assert [len(calls(tmp_path, name)) for name in "abc"] == [1, 1, 1]


def test_two_ladders_at_once_run_each_row_once(tmp_path: Path) -> None:
    rows = {f"r{i}": {"pause": 0.1, "loss": i} for i in range(6)}
    jobs = [Apart(tmp_path, rows) for _ in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    assert [len(calls(tmp_path, name)) for name in rows] == [1] * 6
    assert [steps(tmp_path, name) for name in rows] == [[1, 2, 3]] * 6


def test_a_second_ladder_takes_over_when_the_first_is_killed(tmp_path: Path) -> None:
    rows = {"a": {"steps": 12, "pause": 0.1, "waits": str(tmp_path / "go")}, "b": {"steps": 2}}
    first = Apart(tmp_path, rows, places=1)
    wait_for(lambda: steps(tmp_path, "a"))
    second = Apart(tmp_path, rows, places=1)
    wait_for(lambda: len(steps(tmp_path, "b")) == 2)
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    assert second.wait() == 0
    assert steps(tmp_path, "a") == list(range(1, 13)) and len(calls(tmp_path, "a")) == 1


def test_ladder_and_runs_killed_at_once_lose_nothing(tmp_path: Path) -> None:
    rows = {name: {"steps": 10, "pause": 0.1, "waits": str(tmp_path / "go")} for name in "abc"}
    job = Apart(tmp_path, rows)
    wait_for(lambda: steps(tmp_path, "a") and steps(tmp_path, "b"))
    job.kill()
    for name in "ab":
        os.kill(int(calls(tmp_path, name)[0].split()[0]), signal.SIGKILL)
    job.wait()
    (tmp_path / "go").touch()
    assert run(tmp_path, rows_of(**rows)) == 0
    assert [steps(tmp_path, name) for name in rows] == [list(range(1, 11))] * 3


def test_a_claim_of_another_host_is_taken_over_when_it_stays_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """That of the ladder, and that of its run, which died with the host, too."""
    monkeypatch.setattr(queue, "STALE_AFTER", 0.5)
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(local, "STALE_AFTER", 0.5)
    monkeypatch.setattr(lease, "STALE_AFTER", 1.0)
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.5)
    monkeypatch.setattr(local, "command", lambda *given: [*command(*given), "--stale", "1"])
    (tmp_path / "a/run").mkdir(parents=True)
    for folder in (tmp_path / "a", tmp_path / "a/run"):
        claim = lease.take_lease(folder)
        claim._closing.set()
        claim._thread.join()
        record = {**claim.record, "host": "elsewhere", "machine": "another boot"}
        claim.path.write_bytes(lease._text(record))
    assert run(tmp_path, rows_of(a={})) == 0
    assert len(calls(tmp_path, "a")) == 1


def test_a_changed_row_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert run(tmp_path, rows_of(a={}, b={})) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="other options"):
        run(tmp_path, rows_of(new={}, a={}, b={"steps": 9}))
    with pytest.raises(UserError, match="other options"):  # which `plan` would take for done
        Ladder(Study(rows_of(b={"steps": 9})), tmp_path).known()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_which_checkpoints_stay_may_change_while_a_study_runs(tmp_path: Path) -> None:
    """The disk was full of them, and the study could not be told so."""
    assert run(tmp_path, rows_of(a={"keep_last": 2})) == 0
    assert run(tmp_path, rows_of(a={"keep_last": 0, "save_step": 9}, b={"keep_last": 0})) == 0
    assert [len(calls(tmp_path, name)) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("noted", [True, False], ids=["with row.json", "without"])
def test_results_that_were_copied_without_checkpoints_count(noted: bool, tmp_path: Path, capsys: Any) -> None:
    """As from a machine that was borrowed: two rows had finished there, one was cut, one was never begun."""
    rows = {name: {"steps": 3, "losses": "3,2,1"} for name in "abcd"}
    assert run(tmp_path / "there", rows_of(a=rows["a"], b=rows["b"])) == 0
    (tmp_path / "there/c/run").mkdir(parents=True)
    (tmp_path / "there/c/run/summary.json").write_text('{"finished": false, "interrupted": true, "step": 1}')
    capsys.readouterr()
    for name in "abc":
        (tmp_path / "here" / name / "run").mkdir(parents=True)
        for file in (["row.json"] if noted else []) + ["run/summary.json", "run/metrics.jsonl"]:
            if (tmp_path / "there" / name / file).is_file():
                shutil.copy(tmp_path / "there" / name / file, tmp_path / "here" / name / file)
    copied = {path: path.read_bytes() for path in (tmp_path / "here").rglob("[ab]/run/*")}
    assert run(tmp_path / "here", rows_of(**rows)) == 0
    said = capsys.readouterr().out
    assert said.count("finished before") == 2 and [len(calls(tmp_path / "here", n)) for n in "abcd"] == [0, 0, 1, 1]
    assert copied and all(path.read_bytes() == text for path, text in copied.items())


def test_sigterm_reaches_all_runs_and_the_same_command_goes_on(tmp_path: Path) -> None:
    rows = {name: {"steps": 12, "pause": 0.1, "waits": str(tmp_path / "go")} for name in "abc"}
    job = Apart(tmp_path, rows)
    wait_for(lambda: steps(tmp_path, "a") and steps(tmp_path, "b"))
    job.kill(signal.SIGTERM)
    assert job.wait() == os.EX_TEMPFAIL and "goes on" in job.said.read_text()
    assert not calls(tmp_path, "c") and not list(tmp_path.glob("*/run/summary.json"))
    (tmp_path / "go").touch()
    assert run(tmp_path, rows_of(**rows), devices=(("cpu",),) * 3) == 0
    assert [steps(tmp_path, name) for name in rows] == [list(range(1, 13))] * 3


def test_sigterm_ends_a_ladder_that_waits_for_another_one(tmp_path: Path) -> None:
    rows = {"a": {"waits": str(tmp_path / "never")}}
    first = Apart(tmp_path, rows)
    wait_for(lambda: steps(tmp_path, "a"))
    second = Apart(tmp_path, rows)
    wait_for(lambda: "another ladder runs it" in first.said.read_text())  # both write to one file
    second.kill(signal.SIGTERM)
    assert second.wait() == os.EX_TEMPFAIL
    first.kill(signal.SIGTERM)
    assert first.wait() == os.EX_TEMPFAIL and len(calls(tmp_path, "a")) == 1


def test_a_failing_worker_stops_all_and_says_so(tmp_path: Path) -> None:
    """A summary that somebody damaged while the ladder runs."""
    (tmp_path / "b/run").mkdir(parents=True)
    (tmp_path / "b/run/summary.json").write_text("{")
    with pytest.raises(UserError, match="summary"):
        run(tmp_path, rows_of(b={}, a={}, c={}))


def test_forks_wait_for_their_trunk_and_are_not_run_without_it(tmp_path: Path, capsys: Any) -> None:
    rows = (
        Row("fork", {}, after="trunk"),
        Row("trunk", {"pause": 0.1}),
        Row("lost", {}, after="broken"),
        Row("broken", {"fails": 9}),
    )
    assert run(tmp_path, rows, devices=(("cpu",),) * 3) == 1
    assert f"--fork_from {tmp_path / 'trunk/run'}" in calls(tmp_path, "fork")[0]
    assert not calls(tmp_path, "lost") and "lost: not run, since broken failed" in capsys.readouterr().out


def test_rates_are_added_until_the_best_one_is_bracketed(tmp_path: Path) -> None:
    """The loss is lowest at 0.01, and the study begins above its optimum. A second ladder adds nothing."""

    def row(rate: float) -> Row:
        return Row(f"r{rate:g}", {"base_hps.eta0": rate})

    rates = (0.02, 0.04)
    variants = {row(rate).name: lambda key, value: row(value) for rate in rates}
    study = Study(tuple(map(row, rates)), refine=Refine(factor=2.0, runs=4), variants=variants)
    for _ in range(2):
        assert Ladder(study, tmp_path).run(Settings(devices=(("cpu",),), program=STAND_IN)) == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert names >= {"r0.01", "r0.005"} and all(len(calls(tmp_path, name)) == 1 for name in names)


@pytest.mark.parametrize(
    ("gpus", "per_run", "places"), [("0,0,1", 1, 3), ("0,1,2,3", 2, 2), ("cpu,cpu", 2, 1), ("", 1, 1)]
)
def test_places(gpus: str, per_run: int, places: int) -> None:
    assert len(devices_of(gpus, per_run)) == places


@pytest.mark.parametrize(("gpus", "per_run"), [("0,1,2", 2), ("0,0", 2)])
def test_places_that_do_not_come_out_even(gpus: str, per_run: int) -> None:
    with pytest.raises(UserError, match="per_run"):
        devices_of(gpus, per_run)


def test_several_gpus_of_a_run_are_started_by_torchrun(tmp_path: Path) -> None:
    words = command(Row("a", {"depth": 8}), Settings(), tmp_path, ("0", "1"))
    assert words[1:4] == [str(TORCHRUN), "--standalone", "--nproc_per_node=2"]
    assert environment(("0", "1"), 1)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment(("cpu",), 1)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("end", ["soon", "over", "stopping"])
def test_a_turn_comes_when_the_run_before_ends_sooner_than_a_start_takes(end: str, monkeypatch: Any) -> None:
    """The run before took 30 s to its first tenth, and 10 s for each of the others."""
    now = 1000.0
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now))
    turn, stopping, first, second = local.Turn(), threading.Event(), Mock(), Mock()
    turn.take(first, stopping)
    waiting = threading.Thread(target=turn.take, args=(second, stopping))
    waiting.start()
    for seconds, left in ((20, 1.0), (30, 0.9), (40, 0.8), (80, 0.4), (89, 0.31)):
        now = 1000.0 + seconds
        turn.note(first, left)
    waiting.join(0.1)
    assert waiting.is_alive(), "31 s are left"
    if end == "stopping":
        stopping.set()
    elif end == "over":
        turn.end(first)
    else:
        now = 1091.0
        turn.note(first, 0.29)
    waiting.join(10)
    assert not waiting.is_alive()
    assert (first in turn._ends) == (end != "over") and turn._ends[second] == float("inf")


def test_a_turn_knows_nothing_of_a_run_that_begins_anew(monkeypatch: Any) -> None:
    """A run that failed and starts from its first step was a division by zero, which ended the whole ladder."""
    now = 0.0
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now))
    turn, worker = local.Turn(), Mock()
    turn.take(worker, threading.Event())
    for seconds, left in ((30, 0.9), (40, 0.5), (50, 1.0)):
        now = seconds
        turn.note(worker, left)
    assert turn._ends[worker] == float("inf")
    for seconds, left in ((70, 0.9), (80, 0.8)):
        now = seconds
        turn.note(worker, left)
    assert turn._start == 20.0 and turn._ends[worker] == pytest.approx(160.0)


def test_the_next_run_starts_beside_the_last_part_of_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Display, "budget", lambda *_: 4.0)
    given = {name: {"steps": 4, "losses": "9,9,9,9"} for name in "ab"}
    given["a"]["waits"] = str(tmp_path / "b/run/calls")  # it cannot end before the other has started
    assert run(tmp_path, rows_of(**given), overlap=True, minutes=1) == 0
    assert [steps(tmp_path, name) for name in "ab"] == [[1, 2, 3, 4]] * 2


def test_a_fork_has_left_a_part_of_what_it_trains_itself() -> None:
    display: Any = SimpleNamespace(note=lambda *_: None)
    worker = local.Worker(cast(Any, None), cast(Any, None), Settings(), None, display, Mock())
    watch: Any = SimpleNamespace(look=lambda: "", tokens=85.0, budget=100.0)
    worker._looked(Row("late", {}, after="trunk", start=80), watch, False)
    cast(Mock, worker.turn).note.assert_called_once_with(worker, 0.75)
