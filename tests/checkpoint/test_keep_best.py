"""--keep_best on real runs: a validation loss that falls and rises, a resume in the middle, two processes."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from spawn import run_distributed
from tiny_run import folder_of, make_corpus, pretrain, rows, run, words

from lit_gpt.checkpoint import Checkpointer, read_meta
from lit_gpt.checkpoint.retention import LOSS
from lit_gpt.parallel import start_runtime
from lit_gpt.train import reporter
from lit_gpt.train.loop import Trainer
from lit_gpt.train.save_retries import Saver
from lit_gpt.train.stopping import EXIT_INTERRUPTED

# Of steps 1 to 8. Saved are: 1, 2 and 4, which are the best so far; 3 and 6, as --save_step says; 8, the end.
LOSSES = (5.0, 4.0, math.nan, 3.0, 3.5, 3.2, 3.0, 3.1)
OPTIONS: dict[str, Any] = {"depth": 1, "eval_step": 1, "eval_sequences": 2, "save_step": 3, "keep_last": 1}
OPTIONS |= {"keep_best": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No launcher's variables, no figures, one thread."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LIGHTNING_ARTIFACTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reporter, "draw_loss_curve", lambda *_: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measures(losses: tuple[float, ...]) -> Callable[..., dict[str, float]]:
    return lambda trainer, stopped: {LOSS: losses[trainer.progress.step - 1]}


@pytest.fixture
def saved(monkeypatch) -> list[int]:
    """The steps that are saved, with the validation of LOSSES."""
    monkeypatch.setattr(Trainer, "_measure", measures(LOSSES))
    return noted(monkeypatch.setattr)


def noted(assign: Callable[..., None]) -> list[int]:
    steps: list[int] = []
    save = Checkpointer.save

    def noting(self: Checkpointer, step: int, *args: Any) -> None:
        steps.append(step)
        save(self, step, *args)

    assign(Checkpointer, "save", noting)
    return steps


def there(out: Path) -> dict[str, dict[str, float]]:
    """Step -> what its checkpoint says was measured."""
    folder = folder_of(out) / "checkpoints"
    return {path.name[-1]: read_meta(path)["validation"] for path in sorted(folder.iterdir())}


def test_a_loss_that_falls_and_rises(data: Path, tmp_path: Path, saved: list[int]) -> None:
    assert run(data, tmp_path, val_data_dir=data, **OPTIONS) == 0
    assert saved == [1, 2, 3, 4, 6, 8]
    assert there(tmp_path) == {"4": {LOSS: 3.0}, "8": {LOSS: 3.1}}
    assert {read_meta(path)["kept"] for path in (folder_of(tmp_path) / "checkpoints").iterdir()} == {""}


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_that_is_resumed_keeps_the_same(stop: int, data: Path, tmp_path: Path, saved: list[int]) -> None:
    options = {**OPTIONS, "val_data_dir": data, "async_save": stop % 2 == 0}
    assert run(data, tmp_path, stop_after=stop, resume="auto", **options) == EXIT_INTERRUPTED
    assert run(data, tmp_path, resume="auto", **options) == 0
    assert saved == sorted({1, 2, 3, 4, 6, 8, stop}), "each once"
    assert there(tmp_path) == {"4": {LOSS: 3.0}, "8": {LOSS: 3.1}}


def test_without_it_nothing_changes(data: Path, tmp_path: Path, saved: list[int]) -> None:
    assert run(data, tmp_path, val_data_dir=data, **OPTIONS | {"keep_best": False}) == 0
    assert saved == [3, 6, 8] and list(there(tmp_path)) == ["8"]


def test_a_best_that_could_not_be_written_is_not_the_best(
    data: Path, tmp_path: Path, saved: list[int], monkeypatch
) -> None:
    """The save of step 4 fails, so step 6 is the best that is there, and step 7 is better."""
    write = Checkpointer._write

    def full_disk(self: Checkpointer, staged: Any, tmp: Path) -> Any:
        if tmp.name.endswith("4"):
            raise OSError(28, "No space left on device")
        return write(self, staged, tmp)

    monkeypatch.setattr(Checkpointer, "_write", full_disk)
    assert run(data, tmp_path, val_data_dir=data, **OPTIONS) == 0
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]
    assert there(tmp_path) == {"7": {LOSS: 3.0}, "8": {LOSS: 3.1}}


def test_what_is_measured_is_what_the_checkpoint_says(data: Path, tmp_path: Path) -> None:
    """Not stubbed: the metrics of metrics.jsonl at that step, and none where none were measured."""
    options = {**OPTIONS, "eval_step": 2, "save_step": 1, "keep_last": 99, "num_extrp": 1}
    assert run(data, tmp_path, val_data_dir=data, **options) == 0
    logged = [json.loads(line) for line in (folder_of(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, dict[str, float]] = {str(step): {} for step in range(1, 9)}
    for row in logged:
        expected[str(row["step"])] |= {key: value for key, value in row.items() if key.startswith("metric/val_")}
    assert there(tmp_path) == expected
    assert [step for step, values in expected.items() if LOSS in values] == ["2", "4", "6", "8"]


def test_the_best_of_a_real_run_is_the_lowest_that_was_logged(data: Path, tmp_path: Path) -> None:
    """With a rate that is far too high at the end of its warm-up, so that the loss does not just fall."""
    options = {**OPTIONS, "base_hps.eta0": 0.3, "max_tokens": 12 * 512, "save_step": 100}
    assert run(data, tmp_path, val_data_dir=data, **options) == 0
    losses = rows(tmp_path, LOSS)
    best = min(losses, key=losses.__getitem__)
    names = {path.name for path in (folder_of(tmp_path) / "checkpoints").iterdir()}
    assert names == {f"step-{best:06d}", "step-000012"}


def on_a_rank(argv: list[str]) -> tuple[int, list[int]]:
    """The second rank measures what would be better at every step: the first one decides."""
    reporter.draw_loss_curve = lambda *_: None
    steps = noted(setattr)
    stub = measures(LOSSES)
    Trainer._measure = lambda self, _: stub(self, _) if self.runtime.is_main else {LOSS: -1.0 * self.progress.step}
    return pretrain.main(argv), steps


def test_two_processes(data: Path, tmp_path: Path) -> None:
    argv = words(data, tmp_path, val_data_dir=data, **OPTIONS | {"micro_bsz": 4})
    assert run_distributed(on_a_rank, 2, argv) == [(0, [1, 2, 3, 4, 6, 8])] * 2
    assert there(tmp_path) == {"4": {LOSS: 3.0}, "8": {LOSS: 3.1}}


def test_without_it_a_validation_waits_for_no_save(tmp_path):
    """Training would stand still until a large checkpoint is written."""
    checkpoints, written = Checkpointer(tmp_path, start_runtime(), keep_last=1), threading.Event()
    checkpoints.thread = threading.Thread(target=written.wait)
    checkpoints.thread.start()
    saver: Any = Saver(checkpoints, cast(Any, None), 0)
    saver._writing = 3
    assert not saver.improves({LOSS: 1.0}) and checkpoints.thread.is_alive()
    written.set()
    checkpoints.close()
