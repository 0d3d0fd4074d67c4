"""On a GPU a log line is written while the next step runs. Here the host is made to do so on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import folder_of, run

from lit_gpt.errors import EXIT_NOT_FINITE
from lit_gpt.model import GPT
from lit_gpt.parallel import Runtime
from lit_gpt.train import loop, reporter
from lit_gpt.train.stopping import EXIT_INTERRUPTED

MOE = {"train_model": "transformer_gqa4_h2_moe", "depth": 4, "base_hps__d0": 4, "ar": 8}
CLOCK = ("time", "throughput/", "system/", "monitor/")  # keys that no two runs have in common


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "runs_ahead", True)


def lines(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock and the machine say."""
    text = (folder_of(out) / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)} for line in text.splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        {"log_step": 1, "eval_step": 3, "save_step": 2},
        {"log_step": 3, "eval_step": 3, "save_step": 100, "health_step": 3},
        {"log_step": 2, "eval_step": 4, **MOE, "sparsity": 2, "top_k": 1},
    ],
    ids=["every step", "health", "experts"],
)
def test_the_lines_are_those_of_a_host_that_waits(
    options: dict[str, Any], data: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    given = {**options, "val_data_dir": str(data), "eval_sequences": 4, "async_save": False}
    assert run(data, tmp_path / "waits", **given) == 0
    request.getfixturevalue("late")
    assert run(data, tmp_path / "late", **given) == 0
    found = lines(tmp_path / "late")
    assert found == lines(tmp_path / "waits")
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)


def test_a_line_says_its_own_tokens_and_a_checkpoint_comes_after_its_line(data: Path, tmp_path: Path, late: None):
    options = {"log_step": 2, "save_step": 2, "async_save": False}
    assert run(data, tmp_path, **options, stop_after=4) == EXIT_INTERRUPTED
    seen = [(row["step"], row["total_tokens"]) for row in lines(tmp_path) if "metric/train_loss" in row]
    assert seen == [(step, 512 * step) for step in (1, 2, 4)]
    assert run(data, tmp_path, **options, resume="auto") == 0
    assert [row["step"] for row in lines(tmp_path) if "metric/train_loss" in row] == [1, 2, 4, 6, 8]


def test_the_last_line_before_an_error_is_there(
    data: Path, tmp_path: Path, late: None, monkeypatch: pytest.MonkeyPatch
):
    train_step = loop.train_step

    def fails(*args: Any, step: int, **options: Any):
        if step == 4:
            raise RuntimeError("of a kernel")
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(RuntimeError, match="of a kernel"):
        run(data, tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]


def test_a_device_that_failed_does_not_hide_its_error(
    data: Path, tmp_path: Path, late: None, monkeypatch: pytest.MonkeyPatch
):
    """A GPU that a kernel has broken fails in whatever is asked of it next."""
    train_step = loop.train_step

    def broken():
        raise RuntimeError("nothing can be read any more")

    def fails(*args: Any, step: int, **options: Any):
        if step == 3:
            raise RuntimeError("of a kernel")
        if step == 2:
            monkeypatch.setattr(reporter, "to_host", lambda tensor: broken)
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(RuntimeError, match="of a kernel"):
        run(data, tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [1]
    assert json.loads((folder_of(tmp_path) / "summary.json").read_text())["finished"] is False


@pytest.mark.parametrize("more, rows", [({}, 4), ({"stop_after": 3}, 3)], ids=["goes on", "is stopped"])
def test_a_run_of_bad_steps_ends_one_step_later(
    more: dict[str, Any],
    rows: int,
    data: Path,
    tmp_path: Path,
    late: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Also where it is stopped before the host has the answer: whoever asks again would go on with a broken run."""
    forward = GPT.forward

    def bad(self: GPT, *args: Any, **options: Any):
        output = forward(self, *args, **options)
        assert output.loss is not None
        return output._replace(loss=output.loss * float("nan"))

    monkeypatch.setattr(GPT, "forward", bad)
    assert run(data, tmp_path, max_skips=3, **more) == EXIT_NOT_FINITE
    assert "Steps 1 to 3 were skipped one after the other" in capsys.readouterr().err
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, rows + 1))
