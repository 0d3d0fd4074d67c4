"""torchrun pretrain.py: as many processes as there are change neither the samples nor, beyond rounding, the losses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from spawn import run_distributed, torchrun
from tiny_run import ROOT, pretrain, rows, run, words

from lit_gpt.train.reporter import Reporter
from lit_gpt.train.stopping import EXIT_INTERRUPTED

STEPS = 9
OPTIONS: dict[str, Any] = {"micro_bsz": 2, "max_tokens": STEPS * 512, "eval_step": 4, "eval_sequences": 6}
ROUNDING = 1e-5  # relative; sums over ranks in another order


def leave(arguments: list[str], written: Path) -> int:
    """pretrain.py where the main process takes its time over the summary: nobody may leave before it is there."""
    close = Reporter.close

    def slow(self: Reporter, *how: bool) -> None:
        close(self, *how)
        if int(os.environ["RANK"]) == 0:
            time.sleep(0.5)
            written.touch()

    Reporter.close = slow  # in a process of this call's own
    code = pretrain.main(arguments)
    assert written.exists()
    return code


@pytest.mark.slow
def test_two_then_four_then_one(data, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = {"val_data_dir": data, **OPTIONS}
    assert run(data, alone, **options) == 0
    stdout, stderr = torchrun(ROOT / "pretrain.py", words(data, together, stop_after=3, **options))
    assert "stopped early with a checkpoint" in stdout, stderr
    assert f"exitcode  : {EXIT_INTERRUPTED}" in stderr
    # The start of torchrun without its imports, which cost more than everything else.
    again = words(data, together, resume="auto", stop_after=3, **options)
    four = run_distributed(leave, 4, again, tmp_path / "written", nodes=2)
    assert four == [EXIT_INTERRUPTED] * 4
    assert run(data, together, resume="auto", **options) == 0
    for key in ("metric/train_loss", "metric/val_loss@1x", "metric/grad_norm"):
        assert rows(together, key) == pytest.approx(rows(alone, key), rel=ROUNDING)
    for key in ("data/epoch/train", "samples", "total_tokens"):
        assert rows(together, key) == rows(alone, key)
    assert len(rows(together)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("ends, code", [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 128 + 9), ("pass", 0)])
def test_the_launcher_ends_with_the_code_of_the_first_that_failed(tmp_path, ends, code):
    """torchrun ends with 1, so a study tried wrong options on several GPUs again, and kept their folder."""
    (tmp_path / "run.py").write_text(
        f"import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        f"if os.environ['RANK'] == '1': {ends}\nelif {code}: time.sleep(60)\n"
    )
    launcher = [sys.executable, str(ROOT / "lit_gpt/utils/torchrun.py"), "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run([*launcher, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=300)
    assert ended.returncode == code and ("rank      : 1" in ended.stderr) == bool(code), ended.stderr
