"""What is said of a worker process that could not start, and of one that died at its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prepared_texts import texts, write_folder
from script_module import ROOT

from lit_gpt.data.prepare import prepare, run, units
from lit_gpt.errors import UserError

SCRIPT = """
from lit_gpt.data.prepare import prepare, units
units.UNIT_BYTES, units.PIECE_BYTES = 2000, 3000
{call}
"""
CALL = "prepare({source!r}, {output!r}, num_workers=2, progress=False)"


def die(*_: Any) -> None:
    os._exit(9)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    monkeypatch.setattr(units, "PIECE_BYTES", 3000)
    return write_folder(tmp_path / "src", texts(20))


@pytest.mark.parametrize(("part", "says"), [("start_worker", run.NOT_STARTED), ("run_in_worker", run.DIED)])
def test_what_is_said_of_a_worker(part: str, says: str, source: str, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
        patch.setattr(run, part, die)
        prepare(source, str(tmp_path / "out"), num_workers=2, progress=False)
    assert str(raised.value) == says
    assert prepare(source, str(tmp_path / "out"), num_workers=1, progress=False)["splits"]["train"]["documents"] > 10


@pytest.mark.parametrize("started", ["from standard input", "without a guard", "with a guard"])
def test_a_script_that_workers_cannot_import(started: str, source: str, tmp_path: Path) -> None:
    """It was said to lack memory."""
    call = CALL.format(source=source, output=str(tmp_path / "out"))
    guard = 'if __name__ == "__main__":\n    ' if started == "with a guard" else ""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(call=guard + call))
    line = [sys.executable] if started == "from standard input" else [sys.executable, str(script)]
    with script.open() as text:
        done = subprocess.run(line, stdin=text, capture_output=True, text=True, cwd=ROOT, timeout=120,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode == 0) == (started == "with a guard"), done.stderr
    assert (run.NOT_STARTED in done.stderr) == bool(done.returncode) and run.DIED not in done.stderr
