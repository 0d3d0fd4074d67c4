"""Make an environment for this project on this machine; install.sh starts it with a Python of 3.10 or newer.

Only the standard library, and nothing of the project: neither is installed yet. install_plan.py decides what is done.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from install_plan import (
    ROOT,
    Kernel,
    Plan,
    Stop,
    ask,
    described,
    make_plan,
    offered,
    pin,
    pyproject,
    python_of,
    python_version,
    shown,
)

HELP = """bash install.sh [--dry-run]

Makes an environment (.venv) and installs this project in it. What is already there stays.

  --dry-run    say what would be installed, and install nothing
  --help       this text

Settings stand before the command, as in: EXTRAS=dev,kernels bash install.sh

  PYTHON         the Python to use (default: the first of python3, python3.13, ... that is 3.10 or newer)
  VENV           the folder of the environment (.venv)
  EXTRAS         groups of packages of pyproject.toml, with commas (dev); on a machine with an NVIDIA GPU `gpu` is
                 always added. `gpu` or `kernels` on a machine without one means: install for machines that have one
  TORCH_VERSION  the torch to install (2.13.0)
  TORCH_INDEX    the package index that torch comes from. Default: PyTorch's index of builds for the CPU where there is
                 no NVIDIA GPU. Empty, as in TORCH_INDEX= bash install.sh: pip's own configuration

More: docs/installation.md"""

GB = 10**9
NEEDED = {"cpu": 3 * GB, "cuda": 10 * GB}  # of disk, with what pip unpacks meanwhile; what stays: 1.8, and about 6
FULL = GB // 5  # a disk with less than this is why something failed
NOT_INSTALLED, NOT_WRITTEN, INTERRUPTED = 1, 3, 130  # exit codes; the second as in lit_gpt/errors.py
# What mamba-ssm needs for Mamba and Mamba-2; pyproject.toml says why it does not bring it along.
OF_MAMBA = ("einops", "transformers")


def main(words: list[str]) -> int:
    """The whole installation. Raises Stop with a sentence where it cannot go on."""
    if "--help" in words or "-h" in words:
        print(HELP)
        return 0
    if unknown := [word for word in words if word != "--dry-run"]:
        raise Stop(f"install.sh knows --dry-run and --help, not {unknown[0]!r}. Settings stand before the command.")
    start, plan = time.monotonic(), make_plan()
    print(described(plan))
    if words:
        print("Nothing was installed (--dry-run).")
        return 0
    check_place(plan)
    if not plan.kernels and plan.gpus and asked(offered(plan.gpus)):
        plan = plan._replace(kernels=offered(plan.gpus))
    failed = install(plan)
    report(plan, failed, time.monotonic() - start)
    return 0


def asked(kernels: list[Kernel]) -> bool:
    """Whether the person wants them; no question without a terminal, or where EXTRAS says what is wanted."""
    if "EXTRAS" in os.environ or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    print("Kernels of other libraries only make some layers faster; without one its layers run in plain torch:")
    print("\n".join(f"  {kernel.package}: without it {kernel.without}" for kernel in kernels))
    print("Install them too? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def check_place(plan: Plan) -> None:
    """Raise Stop where the environment cannot be made: no room, no right to write, no venv module."""
    for folder in (ROOT, existing_parent(plan.venv)):  # in the first, pip notes that the project is installed
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise Stop(f"{folder} cannot be written: {error.strerror}. Use a folder of yours.", NOT_WRITTEN) from error
    needed = NEEDED["cuda" if "gpu" in plan.extras else "cpu"]
    free = shutil.disk_usage(existing_parent(plan.venv)).free
    if plan.indexes and free < needed:
        raise Stop(
            f"{plan.venv} needs about {needed / GB:.0f} GB, and its disk has {free / GB:.1f} GB left. "
            "Make room, or give a folder on another disk in VENV.",
            NOT_WRITTEN,
        )
    if plan.there is None:
        check_venv_module()


def existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_venv_module() -> None:
    try:
        import ensurepip  # noqa: F401
    except ImportError as error:
        raise Stop(
            f"{sys.executable} has no module ensurepip, which Debian and Ubuntu keep in a package of its own. Type: "
            f"sudo apt install python{python_version()}-venv (or: PYTHON=/path/to/another/python3 bash install.sh)"
        ) from error


def install(plan: Plan) -> list[tuple[Kernel, str]]:
    """Make the environment, and install everything; the kernels that failed, with why."""
    if plan.there is None:
        make_environment(plan.venv)
    if plan.indexes:
        install_torch(plan)
    step(f"this project ({plan.project})")
    # Named once more, so that nothing below brings another torch along.
    pip_or_stop(plan.venv, "this project", "-e", plan.project, f"torch=={plan.torch}")
    if plan.kernels:
        step("what compiles kernels")
        pip_or_stop(plan.venv, "what compiles kernels", "setuptools", "wheel", "packaging", "ninja", *OF_MAMBA)
    tried = [(kernel, install_kernel(plan, kernel)) for kernel in plan.kernels]
    return [(kernel, why) for kernel, why in tried if why]


def step(what: str) -> None:
    print(f"Installing {what} ...", flush=True)


def make_environment(folder: Path) -> None:
    step(f"an environment in {folder}")
    try:
        venv.create(folder, with_pip=True, symlinks=True)
    except BaseException as error:  # of an interrupt too: half an environment helps no one
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, (OSError, subprocess.CalledProcessError)):
            raise
        raise Stop(f"{sys.executable} could not make {folder}: {error}. {room(folder)}", NOT_WRITTEN) from error


def install_torch(plan: Plan) -> None:
    for index in plan.indexes:
        step(f"torch {plan.torch} from {shown(index)}")
        # One more try only: pip's own configuration is the better second try.
        options = ["--index-url", index, "--retries", "1", "--timeout", "15"] if index else []
        if pip(plan.venv, "install", *options, f"torch=={plan.torch}") == 0:
            return
        if room(plan.venv):
            break
        if index:
            print(f"{shown(index)} answered, but did not deliver torch {plan.torch}.", flush=True)
    stop_for_pip(plan.venv, f"torch {plan.torch}")


def install_kernel(plan: Plan, kernel: Kernel) -> str:
    """Install one; why it failed, or ""."""
    log = plan.venv / f"{kernel.package}.log"
    slow = f" (compiled here: this may take many minutes; {log} grows)" if kernel.compiled else ""
    step(f"{pin(kernel.package)}{slow}")
    pins = plan.venv / "kernels.txt"
    pinned = [pin(name) for name in re.findall(r'"([\w-]+)==', pyproject())]
    pins.write_text("\n".join([f"torch=={plan.torch}", *pinned]) + "\n", encoding="utf-8")
    alone = ["--no-deps"] if kernel.package == "mamba-ssm" else []
    # Compiled in the environment itself, against its torch.
    words = ["install", "--no-build-isolation", *alone, "--constraint", str(pins), pin(kernel.package)]
    with log.open("w", encoding="utf-8") as output:
        code = pip(plan.venv, *words, stdout=output, stderr=subprocess.STDOUT)
    return "" if code == 0 else f"{last_error(log)} (all of it: {log})"


def last_error(log: Path) -> str:
    """The line of pip's output that says most: the last one about an error."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "nvcc was not found" in text:  # mamba-ssm and causal-conv1d, before an error that does not say so
        return "nvcc was not found, the compiler of the CUDA toolkit"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"([\w.]*Error|ERROR)\b", line)]
    return (telling or lines or ["pip said nothing"])[-1][:200]


def pip_or_stop(venv: Path, what: str, *words: str) -> None:
    if pip(venv, "install", *words):
        stop_for_pip(venv, what)


def pip(venv: Path, *words: str, **streams: Any) -> int:
    """Its exit code. On a terminal it shows its progress, elsewhere only what goes wrong."""
    quiet = [] if sys.stdout.isatty() or streams else ["--quiet"]
    # PIP_USER, which some clusters set, fails in an environment.
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
    command = [python_of(venv), "-m", "pip", words[0], *quiet, *words[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, **streams).returncode


def stop_for_pip(venv: Path, what: str) -> None:
    if full := room(venv):
        raise Stop(f"pip could not install {what}. {full}", NOT_WRITTEN)
    raise Stop(
        f"pip could not install {what}; its lines above say why. What is installed stays, and the same command goes "
        "on. docs/installation.md has a section on machines without a network and behind a proxy.",
        NOT_INSTALLED,
    )


def room(venv: Path) -> str:
    """A sentence where a disk that pip writes to is full, or ""."""
    for folder in (existing_parent(venv), Path(tempfile.gettempdir())):
        if shutil.disk_usage(folder).free < FULL:
            return f"The disk of {folder} is full: make room, or name folders on another disk in VENV and TMPDIR."
    return ""


# What came of it


def report(plan: Plan, failed: list[tuple[Kernel, str]], seconds: float) -> None:
    """Say what is there. Raises Stop where torch does not start."""
    for kernel, why in failed:
        print(f"Not installed: {kernel.package}. Without it {kernel.without}. The reason: {why}")
    found = ask(plan.venv, "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))")
    if found is None:
        raise Stop(
            f"torch is installed, but does not start; to see why, type {python_of(plan.venv)} -c 'import torch'.",
            NOT_INSTALLED,
        )
    version, cuda = found
    if plan.gpus and not ask(plan.venv, "import json, torch; print(json.dumps(torch.cuda.is_available()))"):
        print(
            f"Warning: there is an NVIDIA GPU, and torch {version} (CUDA {cuda or 'none'}) cannot use it; "
            "docs/installation.md says what to do under 'Trouble'."
        )
    (plan.venv / ".installed").touch()  # for make
    spent = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"
    print(f"Ready after {spent}: torch {version}, {size(plan.venv) / GB:.1f} GB in {plan.venv}.")
    print(f"Next, type: source '{plan.venv}/bin/activate'")


def size(folder: Path) -> int:
    """Bytes on the disk."""
    files = (Path(parent, name).lstat() for parent, _, names in os.walk(folder) for name in names)
    return sum(file.st_blocks * 512 for file in files)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        print(end="", flush=True)
        sys.exit(code)
    except Stop as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        print("error: Interrupted. What is installed stays, and the same command goes on.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        if isinstance(error, BrokenPipeError) and sys.argv[1:]:  # `head` has enough of what only says something
            sys.exit(0)
        print(f"error: {error.filename or 'A file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        sys.exit(NOT_WRITTEN)
