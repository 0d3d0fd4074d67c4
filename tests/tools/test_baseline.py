"""`make baseline`: what it says of a finished run, and of a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_gpt.errors import UserError
from lit_gpt.tools import baseline


def test_the_report_of_a_run(tmp_path: Path) -> None:
    """Four steps: 50 seconds for the first, which compiles, and 2 for each of the others."""
    rows = [{"step": 1, "time/train": 50.0, "system/gpu_memory_peak_gib": 21.04}]
    rates = {2: 900.0, 3: 1100.0, 4: 1000.0}
    rows += [{"step": n, "time/train": 48.0 + 2 * n, "throughput/tokens_per_sec": rate} for n, rate in rates.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    end = {"step": 4, "time/train": 56.0, "metric/val_loss@1x": 1.37, "metric/val_bpb@1x": 0.53}
    (tmp_path / "summary.json").write_text(json.dumps(end))
    assert baseline.report(tmp_path, 7.86e14).split("\n") == [
        "validation loss   1.3700 nats per token, over the whole validation split",
        "bits per byte     0.5300",
        "seconds of steps  8.0, and 50 for the first step, which compiles",
        "speed             1,000 tokens/s, the median",
        "memory            21.0 GiB at most",
        "products          786 TFLOP/s in bf16, 8192 cubed",
        f"run folder        {tmp_path}",
    ]


def test_the_report_of_a_run_that_was_not_validated(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "time/train": 50.0}) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps({"step": 4, "time/train": 56.0}))
    assert baseline.report(tmp_path).startswith("validation loss   not measured\nseconds of steps  8.0,")


def test_options_are_read_before_the_corpus_is_made(tmp_path: Path, capsys) -> None:
    """A wrong one is said at once, and a dry run needs neither a GPU nor data."""
    out = ["--output", str(tmp_path / "out"), "--"]
    for wrong, said in ((["--depht", "4"], "Did you mean '--depth'"), (["--optimizer", "muonh"], "never move")):
        with pytest.raises(UserError, match=said):
            baseline.main([*out, *wrong])
    assert baseline.main([*out, "--dry_run", "true"]) == 0
    assert "baseline d8, context 2,048" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_machine_without_a_gpu_is_told_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(baseline.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs one GPU, and torch finds none here"):
        baseline.main(["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
