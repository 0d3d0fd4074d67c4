"""A full disk has one exit code, whichever command meets it, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from killed_run import OPTIONS
from lab_runs import make_run
from script_module import ROOT, script_module
from tiny_run import words

from lit_gpt.checkpoint import copying, export
from lit_gpt.config.cli import parse
from lit_gpt.config.command import command_of, exit_code
from lit_gpt.data import remote
from lit_gpt.errors import EXIT_BAD_INPUT, EXIT_NOT_WRITTEN, NotWritten, UserError
from lit_gpt.lab.watch import Watch, note_divergence
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.tools import fit, report, runs
from lit_gpt.train import run_folder
from lit_gpt.train.profile import StepProfiler
from lit_gpt.utils.files import NO_ROOM, write_text


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that takes the place of another one, and every new folder, needs room that is not there."""
    monkeypatch.setattr("lit_gpt.utils.files.os.replace", no_room)


def table(folder: Path) -> str:
    lines = "".join(
        f"{flops},{3 + 1e3 * flops**-0.15},{seed}\n" for flops in (1e18, 1e19, 1e20, 1e21) for seed in (1, 2)
    )
    (folder / "runs.csv").write_text("flops,loss,seed\n" + lines)
    return str(folder / "runs.csv")


@pytest.mark.parametrize("number", NO_ROOM)
def test_an_error_of_writing_alone_has_the_code(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "results.json")

    assert exit_code(command_of(main), []) == EXIT_NOT_WRITTEN
    said = f"error: results.json could not be written ({os.strerror(number)}). Make room or permit it.\n"
    assert capsys.readouterr().err == said


def test_what_is_not_permitted_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Data in a folder that may not be entered was a traceback of pretrain.py, which ends in its own way."""

    def main() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data/mine/train")

    assert exit_code(command_of(main), []) == EXIT_BAD_INPUT
    said = "error: data/mine/train cannot be used: Permission denied. Permit it, or give another.\n"
    assert capsys.readouterr().err == said


def test_another_error_of_a_file_is_not_taken_for_it() -> None:
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "data.txt")

    with pytest.raises(FileNotFoundError):
        exit_code(command_of(main), [])


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (runs.main, ["--csv", "a.csv"]),
        (report.main, ["--output", "a.html"]),
        (fit.main, ["--law", "power", "--samples", "20", "--json", "a.json"]),
        (script_module("plots/plot_flops_scaling.py").main, ["--samples", "20", "--output", "a.png"]),
        (script_module("plots/plot_residuals.py").main, ["--samples", "20", "--output", "a.png", "--json", "a.json"]),
    ],
)
def test_tools_and_figures(main, given, full, tmp_path, monkeypatch, capsys) -> None:
    runs_csv = table(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, [runs_csv, *given]) == EXIT_NOT_WRITTEN
    said = capsys.readouterr().err
    assert "could not be written (No space left on device). Make room or permit it." in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == [tmp_path / "runs.csv"]


def test_exports_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were bad input, which a ladder does not try again."""
    monkeypatch.setattr(export, "save_file", no_room)
    with pytest.raises(NotWritten, match="Give another path, or make room"):
        export.write_exported({}, {}, tmp_path / "model.safetensors")
    for name in ("require_whole", "read_meta"):
        monkeypatch.setattr(copying, name, lambda _: {"step": 1})
    monkeypatch.setattr(copying.Path, "mkdir", no_room)
    with pytest.raises(NotWritten, match="nothing of the copy is left"):
        copying.copy_checkpoint(tmp_path / "a", tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_cache_of_remote_data(tmp_path: Path) -> None:
    """It was said that the data cannot be downloaded."""
    with pytest.raises(NotWritten, match=r"a\.bin could not be written \(No space left on device\)"):
        remote._fetch(SimpleNamespace(get_file=no_room), "s3://data/a.bin", 100, tmp_path / "cache/a.bin")


def test_a_profile_of_no_step_is_said(tmp_path):
    """A run of five steps ended without a trace and without a word."""
    profiler = StepProfiler(tmp_path, 1)
    for _ in range(5):
        profiler.step()
    with pytest.warns(UserWarning, match="this one ended after 5: no step was profiled"):
        profiler.close()


def test_a_row_that_diverged_and_a_profile(full, tmp_path: Path) -> None:
    run = make_run(tmp_path / "row/run", row={"name": "row"})
    with pytest.raises(NotWritten, match=r"diverged\.json could not be written"):
        note_divergence(run.parent, "its loss is no number", Watch(run.parent, 0))
    (tmp_path / "profile").write_text("in the way")
    profiler = StepProfiler(tmp_path, 1)
    with pytest.warns(UserWarning, match=r"profile cannot be written \(File exists\); training goes on"):
        for _ in range(10):
            profiler.step()
        profiler.close()


COMMANDS = [
    [sys.executable, "-m", "lit_gpt.tools.runs", "docs/examples"],
    [sys.executable, "scripts/fetch.py", "--list"],
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("line", COMMANDS)
def test_output_on_a_full_disk(line: list[str]) -> None:
    with open("/dev/full", "w") as output:
        done = subprocess.run(line, stdout=output, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == EXIT_NOT_WRITTEN
    assert done.stderr.count("\n") == 1 and "output" in done.stderr and "(No space left on device)" in done.stderr


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pathlib import Path
from lit_gpt.config.command import run_command
from lit_gpt.utils.files import write_text
run_command(lambda words: write_text(Path(words[0]), "x" * 5000))
"""


def test_a_file_that_the_system_refuses(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "before")
    line = [sys.executable, "-c", LIMITED, str(tmp_path / "a.json")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_NOT_WRITTEN, 1), done.stderr
    assert (tmp_path / "a.json").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, EXIT_NOT_WRITTEN), (errno.ENOTDIR, EXIT_BAD_INPUT)])
def test_a_run_folder_that_cannot_be_made(number: int, code: int, data, tmp_path, monkeypatch) -> None:
    resolved = resolve_run(parse(words(data, tmp_path, **OPTIONS)), 1)

    def mkdir(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match="cannot be made") as raised:
        run_folder.lock_folder(resolved, None, None, [])
    assert raised.value.code == code
