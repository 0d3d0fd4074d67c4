"""An error that all processes of a torchrun meet is said once, and one that a single process meets is said, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from spawn import torchrun
from tiny_run import ROOT, make_corpus, words

from lit_gpt.config.command import command_of, exit_code
from lit_gpt.errors import EXIT_BAD_INPUT, EXIT_NOT_WRITTEN, NotWritten, UserError
from lit_gpt.utils.once import code_said, first_to_say

WHILE_STARTING = """
import os, time
from pathlib import Path
other = Path(__file__).with_name("other_is_here")
if os.environ["RANK"] == "1":
    while not other.exists():  # a process that torchrun ends before it listens has the signal's code
        time.sleep(0.02)
    raise RuntimeError("only here")
other.touch()
time.sleep(60)
"""
CONNECTED = """
import os, sys
import pretrain
from lit_gpt.errors import NotWritten
from lit_gpt.train import loop

def refuse(*_):
    if os.environ["RANK"] == "1":
        raise NotWritten("only here")

loop.check_installed = refuse
pretrain.command(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data"))


def said_by(arguments: list[str], script: Path = ROOT / "pretrain.py") -> tuple[list[str], set[str]]:
    """(lines of ours on stderr, the exit codes that torchrun tells of) of two processes on the CPU."""
    _, stderr = torchrun(script, arguments)
    ours = [text for text in stderr.splitlines() if text.startswith(("error: ", "rank ", "stopped by"))]
    return ours, set(re.findall(r"exitcode *: (-?\d+)", stderr))


def test_a_mistyped_option(data: Path, tmp_path: Path) -> None:
    """It was there twice, or once with a sentence on the signal that torchrun sent to the other process."""
    said, codes = said_by([*words(data, tmp_path), "--depht", "3"])
    assert len(said) == 1 and said[0].startswith("error: unrecognized arguments: --depht 3.")
    assert "2" in codes and codes <= {"2", "-15"}, "torchrun ends the other process, perhaps before Python has started"


def test_data_that_is_not_there(data: Path, tmp_path: Path) -> None:
    """Met after the processes are connected."""
    said, codes = said_by(words(tmp_path / "nowhere", tmp_path))
    assert len(said) == 1 and "nowhere' does not exist" in said[0] and codes == {"2"}


@pytest.mark.slow
def test_what_one_process_alone_meets(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WHILE_STARTING)
    said, codes = said_by([*words(data, tmp_path), "--plugins", str(tmp_path / "mine.py")])
    assert len(said) == 1 and "only here" in said[0] and codes == {"2"}
    (tmp_path / "driver.py").write_text(CONNECTED)
    said, codes = said_by(words(data, tmp_path), tmp_path / "driver.py")
    assert said == ["error: only here"] and codes == {"3"}


def ended(lines: str, **environment: str) -> int:
    """The exit code of a process that runs these lines."""
    line = [sys.executable, "-c", lines]
    return subprocess.run(line, env={**os.environ, **environment}, cwd=ROOT, capture_output=True).returncode


ABORTS = """
import atexit, os
import pretrain
from lit_gpt.config.command import run_command
atexit.register(os.abort)

def main(*_):
    if os.environ["CODE"] == "1":
        raise RuntimeError("nobody expected it")
    return int(os.environ["CODE"])

pretrain.carried_out = main
pretrain.command([]) if os.environ["HOW"] == "trains" else run_command(main)
"""


@pytest.mark.parametrize("how", ["trains", "evaluates"])
@pytest.mark.parametrize("processes, code, left", [(2, 3, 3), (2, 1, 1), (2, 0, -6), (1, 3, -6)])
def test_one_of_several_that_failed_has_its_code_however_its_interpreter_would_end(how, processes, code, left) -> None:
    assert ended(ABORTS, WORLD_SIZE=str(processes), CODE=str(code), HOW=how) == left


SAYS_AND_FAILS = """
import sys
from lit_gpt.config.command import run_command
from torch.distributed.checkpoint.api import CheckpointException

def main(_):
    print("figures of hours")
    print("a row without an end", end="", file=sys.stderr)
    raise {}

run_command(main)
"""


@pytest.mark.parametrize("error", ["RuntimeError('not expected')", "CheckpointException('not expected', {})"])
def test_what_was_said_before_an_error_that_nobody_expected_is_not_lost(error: str) -> None:
    """Python holds lines back for a pipe, as torchrun's, and os._exit drops them. torch's is no Exception."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = [sys.executable, "-c", "import atexit, os; atexit.register(os.abort)" + SAYS_AND_FAILS.format(error)]
    done = subprocess.run(line, env=environment | {"WORLD_SIZE": "2"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "figures of hours\n"
    assert done.stderr.startswith("a row without an end") and error.partition("(")[0] in done.stderr


@pytest.mark.parametrize("how", ["pretrain.command([])", "run_command(fails)"])
def test_a_debugger_gets_an_error_that_nobody_expected(how: str, tmp_path: Path) -> None:
    """A process alone caught it, and python -m pdb started the script again in place of a look at what failed."""
    lines = "import pretrain\nfrom lit_gpt.config.command import run_command\ndef fails(*_):\n    raise RuntimeError\n"
    (tmp_path / "script.py").write_text(f"{lines}pretrain.carried_out = fails\n{how}\n")
    line = [sys.executable, "-m", "pdb", "-c", "continue", "-c", "where", "-c", "quit", str(tmp_path / "script.py")]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, input="", capture_output=True, text=True)
    assert "post mortem debugging" in done.stdout


def test_an_empty_number_of_processes_is_none() -> None:
    """Other launchers leave such a variable; a mistyped option ended in a trace, and with another code."""
    assert ended("import pretrain; pretrain.command(['--depht', '3'])", WORLD_SIZE="") == EXIT_BAD_INPUT


ENDED_WHILE_IT_LEAVES = """
import os, signal
import pretrain
pretrain.lost_output = lambda: os.kill(os.getpid(), signal.SIGTERM) or ""
pretrain.command(["--depht", "3"])
"""


def test_a_signal_of_torchrun_to_a_process_that_leaves_changes_no_code(attempt: Path) -> None:
    """Another one had failed a moment before, and this one had stopped to listen."""
    assert ended(ENDED_WHILE_IT_LEAVES, RANK="1") == EXIT_BAD_INPUT


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torchrun makes, seen from one of two processes."""
    (tmp_path / "attempt_0/0").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0/0/error.json"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return tmp_path / "attempt_0"


def failing(error: Exception) -> None:
    def main() -> None:
        raise error

    assert exit_code(command_of(main), []) == getattr(error, "code", None)


def test_every_sentence_once_and_every_code(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_said() is None
    for error in (UserError("a."), UserError("a."), NotWritten("b."), UserError("a."), NotWritten("b.")):
        failing(error)
    assert capsys.readouterr().err == "error: a.\nerror: b.\n"
    assert code_said() in (EXIT_BAD_INPUT, EXIT_NOT_WRITTEN)


def test_where_processes_cannot_meet_each_says_it(attempt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(attempt / "gone/0/error.json"))
    assert first_to_say("a", 2) and first_to_say("a", 2) and code_said() is None
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(attempt / "0/error.json"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert first_to_say("a", 2) and first_to_say("a", 2) and code_said() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert first_to_say("a", 2) and not first_to_say("a", 2) and code_said() == 2
