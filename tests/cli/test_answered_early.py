"""Every command answers --help and a mistyped option before it imports torch, which takes seconds.

Where the answer cannot be written, its code says so.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.errors import EXIT_NOT_WRITTEN

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "benchmarks", "eval_reason", "launch_scripts", "lit_gpt/tools", "plots", "scripts")
FILES = (path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")))
COMMANDS = [str(path) for path in FILES if '__name__ == "__main__"' in (ROOT / path).read_text(encoding="utf-8")]
HELP, MISTYPED = ["--help"], ["--no_such_option", "1"]
# Where the answer goes: a full disk, a reader such as `head` that has enough, and no output at all, as with >&-.
FULL, GONE, NONE = ">full", ">gone", ">none"
ASKED = [(command,) for command in COMMANDS] + [("lit_gpt/tools/evaluate.py", "phonebook")]
LINES = [(*asked, *words) for asked in ASKED for words in (HELP, MISTYPED)]
NOT_WRITTEN = [(*asked, *HELP, to) for asked in ASKED for to in (FULL, GONE, NONE)]
# Each line in a process of its own; what all of them import anyway is there when they are forked.
START = """
import json, os, runpy, sys, traceback
import numpy, lit_gpt.config.cli, lit_gpt.data.prepare, lit_gpt.lab.report
for line in json.load(sys.stdin):
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        said = os.fdopen(read).read()
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": said}))
        continue
    os.dup2(write, 1), os.dup2(write, 2)
    if line[-1] == ">full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    if line[-1] == ">gone":
        gone, reader = os.pipe()
        os.close(gone), os.dup2(reader, 1)
    if line[-1] == ">none":
        sys.stdout = None
    line = [word for word in line if word[0] != ">"]
    file, sys.argv, code = line[0], line, 0
    try:
        if file.startswith("lit_gpt/"):
            runpy.run_module(file.removesuffix(".py").replace("/", "."), run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(file) or "."
            runpy.run_path(file, run_name="__main__")
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    if "torch" in sys.modules:
        code = 98
    sys.stdout and sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
"""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, ...], dict[str, Any]]:
    """Line -> its exit code, 98 where torch was imported, and what it printed."""
    line, asked = [sys.executable, "-c", START], [*LINES, *NOT_WRITTEN]
    done = subprocess.run(line, input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_it_answers_without_torch(answers: dict[tuple[str, ...], dict[str, Any]], line: tuple[str, ...]) -> None:
    if line[0] == "eval.py" and line[1:] != tuple(HELP) and importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval reads these words, and imports torch")
    assert answers[line]["code"] == (0 if line[-1] == "--help" else 2), answers[line]["said"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("line", NOT_WRITTEN, ids=" ".join)
def test_an_answer_that_is_not_written(answers: dict[tuple[str, ...], dict[str, Any]], line: tuple[str, ...]) -> None:
    """argparse hides that a help cannot be written, so that the code was 0."""
    code, said = answers[line]["code"], answers[line]["said"]
    if line[-1] == GONE:
        assert (code, said) == (0, "")
    elif line[-1] == NONE:
        assert code == 0 and "Traceback" not in said, said
    else:
        assert code == EXIT_NOT_WRITTEN and said.startswith("error: ") and said.count("\n") == 1, said


def test_all_kinds_of_commands_are_among_them() -> None:
    assert {"pretrain.py", "lit_gpt/tools/fit.py", "plots/plot_run.py", "benchmarks/cpu.py"} < set(COMMANDS)
