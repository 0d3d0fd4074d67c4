"""Signals in every phase of a run: it saves and leaves, or leaves at once and says what that costs; nothing breaks."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import Rank, run, start_alone, start_ranks
from tiny_run import folder_of, newest_step, pretrain, rows, words

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, read_meta
from lit_gpt.checkpoint.retention import KEPT, VALIDATION
from lit_gpt.train import run_folder, validate
from lit_gpt.train.loop import Trainer
from lit_gpt.train.stopping import EXIT_INTERRUPTED
from lit_gpt.utils import signals
from lit_gpt.utils.signals import Signals

STEPS = 6
OPTIONS: dict[str, Any] = {"max_tokens": STEPS * 512, "save_step": 2}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict[int, float]:
    """Losses by step."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(data, out, **OPTIONS) == 0
    return rows(out)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def stuck() -> None:
    """As in a compiler or a collective."""
    time.sleep(600)


def after_step(n: int, then: Callable[[], None], argv: list[str]) -> int:
    """pretrain.py with something that happens after its n-th step (before the end of it, for n = 1)."""
    step = Trainer.step

    def patched(self: Trainer, report: Any) -> None:
        step(self, report)
        if self.progress.step == n:
            then()

    Trainer.step = patched  # type: ignore[method-assign]
    return pretrain.main(argv)


def usr1() -> None:
    send(signal.SIGUSR1)


def hup() -> None:
    send(signal.SIGHUP)


@pytest.mark.parametrize("then", [usr1, hup])
def test_usr1_and_hup_save_and_leave(then, data, tmp_path, undisturbed):
    """Slurm's --signal=USR1 killed the run, and so did a terminal that went away."""
    argv = words(data, tmp_path / "out", **OPTIONS)
    rank = start_alone(tmp_path, after_step, 3, then, argv)
    assert rank.ends() == EXIT_INTERRUPTED, rank.said
    assert "--resume auto continues" in rank.said
    assert finished_equal(data, tmp_path / "out") == undisturbed


def finished_equal(data: Path, out: Path) -> dict[int, float]:
    """Losses by step once the run was continued."""
    assert run(data, out, resume="auto", **OPTIONS) == 0
    return rows(out)


def under_nohup(argv: list[str]) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return after_step(3, hup, argv)


def in_validation(argv: list[str]) -> int:
    """pretrain.py with a SIGTERM between two batches of its validation."""
    slices = validate._slices

    def patched(*arguments: Any) -> Any:
        for i, batch in enumerate(slices(*arguments)):
            if i == 1:
                send(signal.SIGTERM)
                time.sleep(0.2)
            yield batch

    validate._slices = patched
    return pretrain.main(argv)


def test_a_signal_in_the_last_validation(data, tmp_path):
    """It was heard after all batches, and a queue kills before: the steps since the last checkpoint were lost."""
    options, loss = {**OPTIONS, "save_step": 100, "val_data_dir": data}, "metric/val_loss@1x"
    rank = start_alone(tmp_path, in_validation, words(data, tmp_path / "out", **options))
    assert rank.ends() == EXIT_INTERRUPTED, rank.said
    found = find_checkpoint(folder_of(tmp_path / "out"), True)
    assert found is not None and read_meta(found)["step"] == STEPS
    assert rows(tmp_path / "out", loss) == {}
    assert run(data, tmp_path / "out", resume="auto", **options) == 0
    assert run(data, tmp_path / "whole", **options) == 0
    assert rows(tmp_path / "out", loss) == rows(tmp_path / "whole", loss) != {}
    assert run(data, tmp_path / "out", resume="auto", **options) == 0
    assert len(rows(tmp_path / "out", loss)) == 1, "it is finished now"


MEASURED: dict[str, dict[str, Any]] = {
    "a validation": {"eval_step": 3},
    "all of the data": {"full_eval_at": 3, "eval_step": 100},
    "the end of a decay": {"decay_at": "1536,3072", "decay_tokens": 512, "eval_step": 100},
    "evaluations": {"eval_step": 100, "eval_tasks": "phonebook", "eval_tasks_step": 3, "ctx_len": 512, "micro_bsz": 1},
}
PHONEBOOK = {"min_eval_len": 3, "max_eval_len": 3, "num_eval": 1, "eval_num_batches": 1, "eval_batch_size": 2}


@pytest.mark.parametrize("then", [usr1, None], ids=["before it", "stop_after"])
@pytest.mark.parametrize("name", MEASURED)
def test_a_measurement_that_was_due_is_made_up_for(name, then, data, tmp_path):
    """A signal took it away for good, with the loss at the end of a decay, and --stop_after took evaluations."""
    options = {**OPTIONS, "save_step": 100, "val_data_dir": data, "eval_sequences": 4, "num_extrp": 1, **MEASURED[name]}
    options |= {"eval_task_options": json.dumps({"phonebook": PHONEBOOK})} if "eval_tasks" in options else {}
    options |= {"max_tokens": None} if "decay_at" in options else {}
    out, whole = tmp_path / "out", tmp_path / "whole"
    if then is None:
        assert run(data, out, **options, stop_after=3) == EXIT_INTERRUPTED
    else:
        rank = start_alone(tmp_path, after_step, 3, then, words(data, out, **options))
        assert rank.ends() == EXIT_INTERRUPTED, rank.said
        assert set(measured(out)) <= {6}
    kept = read_meta(folder_of(out) / "checkpoints" / "step-000003")[KEPT]
    assert run(data, out, resume="auto", **options) == 0
    assert run(data, whole, **options) == 0
    assert measured(out) == measured(whole) and set(measured(whole)) == {3, STEPS}
    meta = read_meta(folder_of(out) / "checkpoints" / "step-000003")
    assert meta[KEPT] == kept and bool(kept) == (name == "the end of a decay")
    assert meta["owed"] == [] and bool(meta[VALIDATION]) == (name in ("a validation", "the end of a decay"))


def measured(out: Path) -> dict[int, dict[str, float]]:
    """What validations and evaluations found, by step."""
    found: dict[int, dict[str, float]] = {}
    for row in map(json.loads, (folder_of(out) / "metrics.jsonl").read_text().splitlines()):
        values = {
            k: v for k, v in row.items() if k.startswith(("metric/val", "metric/full_val", "eval/")) and v is not None
        }
        assert not values.keys() & found.get(row["step"], {}).keys(), "measured twice"
        found |= {row["step"]: found.get(row["step"], {}) | values} if values else {}
    return found


def test_nohup_stays_in_force(data, tmp_path):
    """nohup ignores the signal for the run, which must not listen again."""
    rank = start_alone(tmp_path, under_nohup, words(data, tmp_path / "out", **OPTIONS))
    assert rank.ends() == 0, rank.said


def first_rank_only() -> None:
    if os.environ["RANK"] == "0":
        usr1()


def test_one_rank_hears_it_and_all_leave(data, tmp_path):
    argv = words(data, tmp_path / "out", **OPTIONS, micro_bsz=1)
    ranks = start_ranks(tmp_path, 2, after_step, 3, first_rank_only, argv)
    assert [rank.ends() for rank in ranks] == [EXIT_INTERRUPTED] * 2, ranks[0].said


def little_grace(*arguments: Any) -> int:
    signals.GRACE = 0.5
    return after_step(*arguments)


def term_and_stuck() -> None:
    send(signal.SIGTERM)
    stuck()


def test_term_in_a_first_step_that_takes_long(data, tmp_path, undisturbed):
    """Compiling kept the run from hearing SIGTERM until torchrun killed it, 30 seconds later."""
    out = tmp_path / "out"
    assert run(data, out, stop_after=2, **OPTIONS) == EXIT_INTERRUPTED
    argv = words(data, out, resume="auto", **OPTIONS)
    rank = start_alone(tmp_path, little_grace, 3, term_and_stuck, argv)
    assert rank.ends() == 128 + signal.SIGTERM, rank.said
    assert "stopped by SIGTERM in the first step of this start" in rank.said and "nothing is lost" in rank.said
    assert finished_equal(data, out) == undisturbed


def test_term_in_a_first_step_that_ends_saves(data, tmp_path):
    """Less than the grace is left to it."""
    rank = start_alone(tmp_path, after_step, 1, usr1, words(data, tmp_path / "out", **OPTIONS))
    assert rank.ends() == EXIT_INTERRUPTED, rank.said
    assert newest_step(tmp_path / "out") == 1


def before_training(argv: list[str], number: int) -> int:
    check_folder = run_folder.check_folder

    def patched(*args: Any) -> None:
        check_folder(*args)
        send(number)
        stuck()

    run_folder.check_folder = patched
    return pretrain.main(argv)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_start_that_is_stopped(number, data, tmp_path):
    """It was a traceback, or nothing at all, while model and data were made."""
    argv = words(data, tmp_path / "out", **OPTIONS)
    rank = start_alone(tmp_path, before_training, argv, number)
    assert rank.ends() == 128 + number, rank.said
    assert "before training started; nothing is lost." in rank.said and "Traceback" not in rank.said
    assert not (tmp_path / "out").exists()


def interrupted_twice(argv: list[str]) -> int:
    write = Checkpointer._write

    def patched(self: Checkpointer, *args: Any) -> Any:
        written = write(self, *args)
        if self.folder.joinpath("step-000002").exists():
            send(signal.SIGINT)
            stuck()
        return written

    Checkpointer._write = patched  # type: ignore[method-assign]
    return after_step(3, lambda: send(signal.SIGINT), argv)


def test_a_second_ctrl_c(data, tmp_path, undisturbed):
    """It was a traceback that waited for the save; now it says what is abandoned, and the save before it is whole."""
    argv = words(data, tmp_path / "out", **OPTIONS)
    rank = start_alone(tmp_path, interrupted_twice, argv)
    assert rank.ends() == 128 + signal.SIGINT, rank.said
    assert "interrupted: the current step ends, then a checkpoint is saved" in rank.said
    assert "interrupted again: ends at once. Steps after the newest checkpoint are lost" in rank.said
    assert "the newest checkpoint is that of step 2, with that of step 3 being written" in rank.said
    assert "Traceback" not in rank.said
    assert newest_step(tmp_path / "out") == 2
    assert finished_equal(data, tmp_path / "out") == undisturbed


def forks(pid: Path) -> int:
    with Signals() as ours:
        child = os.fork()
        if not child:
            stuck()
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(0.1)
        return 0 if os.WTERMSIG(status) == signal.SIGTERM and not ours.asked else 1


def test_a_signal_to_a_forked_child_is_the_child_s(tmp_path):
    """A pool of processes that is terminated must not end the run that made it."""
    rank: Rank = start_alone(tmp_path, forks, tmp_path / "pid")
    assert rank.ends() == 0, rank.said


def test_handlers_are_put_back():
    """But for one that was given while it listened: a process that leaves does not hear its launcher any more."""
    before = [signal.getsignal(number) for number in signals.STOPS]
    with Signals():
        assert signal.getsignal(signal.SIGUSR1) != before[2]
    assert [signal.getsignal(number) for number in signals.STOPS] == before
    try:
        with Signals():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert [signal.getsignal(number) for number in signals.STOPS] == [signal.SIG_IGN, *before[1:]]
    finally:
        signal.signal(signal.SIGTERM, before[0])
