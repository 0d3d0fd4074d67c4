"""Scripts run from any folder and do not change Python's path: the package is installed, siblings are beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.config.command import exit_code

ROOT = Path(__file__).parents[2]
FOLDERS = ("scripts", "benchmarks", "plots", "launch_scripts")
BEFORE = ("install.py",)  # runs before the package is installed
SCRIPTS = [p for folder in FOLDERS for p in sorted((ROOT / folder).glob("*.py")) if "__main__" in p.read_text()]
SCRIPTS = [path for path in SCRIPTS if path.name not in BEFORE]


@pytest.mark.parametrize("script", ["scripts/prepare_text.py", "benchmarks/decode.py", "launch_scripts/sweep.py"])
def test_help_from_another_folder(script: str, tmp_path: Path) -> None:
    """PYTHONPATH stands for `pip install -e .`, which install.sh does: this checkout may not be the installed one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_nothing_changes_the_path(path: Path) -> None:
    """Eight scripts did; each ended in its own way."""
    text = path.read_text()
    assert "sys.path" not in text and "except UserError as error:\n        print" not in text.split("def main")[-1]
    assert re.search(r"(run_command|exit_code)\(", text), "ends through lit_gpt.config.command"


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """`make demo` ended in a traceback while it prepared its text."""

    def main(words: list[str]) -> int:
        raise KeyboardInterrupt

    assert exit_code(main, []) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; the same command starts it again.\n"
