"""One job of reproduce.py, as the ladder starts it: its folder is its own, and says when it is finished.

The words are those of a run of pretrain.py, of which --command, --python, --out, --text and --out_dir are read here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from lit_gpt.config.command import run_command
from lit_gpt.errors import EXIT_BAD_INPUT, UserError
from lit_gpt.train.lease import take_lease
from lit_gpt.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
READ = ("command", "python", "out", "text", "out_dir")
SAVES = 15.0  # seconds that a job gets to save before it is killed


def main(words: list[str]) -> int:
    """Run the command. Returns 0, EX_TEMPFAIL when it was interrupted, else 1, or 2 where another try is no use.

    Raises NotOwner where another process runs this job, and UserError where one of READ is missing.
    """
    if words[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))
    if missing := [f"--{name}" for name in READ if name not in given]:
        raise UserError(f"{', '.join(missing)} must be given: this is for benchmarks/reproduce.py. Start that one.")
    run = Path(given["out_dir"]) / "run"
    run.mkdir(parents=True, exist_ok=True)
    lease = take_lease(run)
    try:
        code = run_bash(filled(given))
        if code == 0:
            write_text(run / "summary.json", '{"finished": true}\n')
    finally:
        lease.close()
    return code if code in (0, EXIT_BAD_INPUT, os.EX_TEMPFAIL) else 1


def filled(given: Mapping[str, str]) -> str:
    """The command with its places filled."""
    values = {"python": given["python"], "out": given["out"], "text": given["text"]}
    values["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    command = given["command"]
    for name, value in values.items():
        command = command.replace(f"{{{name}}}", value)
    return command


def run_bash(command: str) -> int:
    """Its exit code. SIGTERM reaches it and its children: they may save, and are killed after SAVES."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print(f"$ {command}", flush=True)
    with subprocess.Popen(["bash", "-c", command], cwd=ROOT, start_new_session=True) as process:
        while process.poll() is None and not stopped.wait(0.1):
            pass
        for way in (signal.SIGTERM, signal.SIGKILL) if process.poll() is None else ():
            os.killpg(process.pid, way)
            try:
                process.wait(SAVES)
                break
            except subprocess.TimeoutExpired:
                continue
    return os.EX_TEMPFAIL if stopped.is_set() else process.returncode


if __name__ == "__main__":
    run_command(main)
