"""A log that cannot be written, or a reader that is gone, ends no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from killed_run import OPTIONS
from tiny_run import ROOT, folder_of, words

from lit_gpt.errors import EXIT_NOT_WRITTEN
from lit_gpt.utils import streams
from lit_gpt.utils.streams import make_warnings_plain


def pretrain(data: Path, out: Path, **streams: Any) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "pretrain.py"), *words(data, out, **OPTIONS)]
    return subprocess.run(line, timeout=120, text=True, **streams)


def gone() -> int:
    """A pipe that nobody reads, as behind a `tee` that Ctrl-C ended."""
    read, write = os.pipe()
    os.close(read)
    return write


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("log", [gone, full])
def test_a_log_that_cannot_be_written(log, data, tmp_path):
    """A line of the console raised, and the steps since the newest checkpoint were lost, with code 1."""
    done = pretrain(data, tmp_path, stderr=log(), stdout=subprocess.PIPE)
    assert done.returncode == 0 and "run folder: " in done.stdout
    assert "see it with: python -m lit_gpt.tools.inspect run " in done.stdout
    assert json.loads((folder_of(tmp_path) / "summary.json").read_text())["finished"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(("out", "code"), [(gone, 0), (full, EXIT_NOT_WRITTEN)])
def test_output_that_cannot_be_written(out, code, data, tmp_path):
    """They were tracebacks. `| head` had enough; results on a full disk are missing, which is said."""
    done = pretrain(data, tmp_path, stdout=out(), stderr=subprocess.PIPE)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert ("standard output could not be written (No space left on device)" in done.stderr) == bool(code)


def test_a_warning_of_ours_is_a_sentence(monkeypatch):
    """It came with the path of a file, the name of a class, and a line of code."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    make_warnings_plain()
    assert warnings.formatwarning("A line is cut.", UserWarning, streams.__file__, 3) == "warning: A line is cut.\n"
    assert "other.py:3: UserWarning: A line" in warnings.formatwarning("A line", UserWarning, "other.py", 3)
