"""What `bash install.sh` would do on this machine: looks at Python, GPUs, indexes and settings, and changes nothing.

Only the standard library, and nothing of the project: neither is installed yet.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWER_SECONDS = 5.0  # for an index to answer in
BAD_INPUT = 2  # exit code, as in lit_gpt/errors.py
GENERATIONS = {7: "Volta or Turing", 8: "Ampere or Ada", 9: "Hopper", 10: "Blackwell", 11: "Blackwell", 12: "Blackwell"}


class Stop(Exception):
    """The sentence that an installation ends with, and its exit code."""

    def __init__(self, sentence: str, code: int = BAD_INPUT):
        super().__init__(sentence)
        self.code = code


class Kernel(NamedTuple):
    """since: the first compute capability (major) that it has kernels for. compiled: by pip, with nvcc, for minutes.

    The times of `without` are those of docs/performance_details.md, of one operation on an H200.
    """

    package: str
    since: int
    compiled: bool
    without: str


KERNELS = (
    Kernel(
        "flash-linear-attention", 8, False, "(Gated) DeltaNet, GLA, RetNet and KDA are 19 to 90 times slower, fox too"
    ),
    Kernel("causal-conv1d", 8, True, "the short convolutions of recurrent layers take twice as long"),
    Kernel("mamba-ssm", 8, True, "Mamba's scan is 17 times slower, Mamba-2's 5 times"),
    Kernel("quack-kernels", 9, False, "--expert_backend quack and Muon's symmetric products cannot be chosen"),
    Kernel("flash-attn-4", 9, False, "attention has torch's own kernels, and a step takes 1 to 2% longer"),
)


class Gpu(NamedTuple):
    """major: of its compute capability, 0 where the driver is too old to say."""

    name: str
    major: int

    def __str__(self) -> str:
        return f"{self.name} ({GENERATIONS.get(self.major, 'of an unknown generation')})"


class Environment(NamedTuple):
    """What is in the folder of the environment already. torch: "" where there is none that starts."""

    python: str
    torch: str


class Plan(NamedTuple):
    """What will be done. indexes: to try for torch, "" is pip's own configuration; none where the torch there stays."""

    venv: Path
    there: Environment | None
    gpus: list[Gpu]
    torch: str
    indexes: list[str]
    reason: str
    extras: list[str]
    kernels: list[Kernel]

    @property
    def project(self) -> str:
        return f".[{','.join(self.extras)}]" if self.extras else "."


def make_plan() -> Plan:
    """Look at the machine and at the settings; install and change nothing."""
    venv = ROOT / (os.environ.get("VENV") or ".venv")
    there, gpus, names = look_into(venv), find_gpus(), chosen_extras()
    for_gpu = bool(gpus) or bool({"gpu", "kernels"} & set(names))
    wanted = os.environ.get("TORCH_VERSION")
    if wanted and not supported(wanted):
        raise Stop(f"TORCH_VERSION is {wanted!r}; this project works with {torch_range()}, such as {TORCH}.")
    torch = wanted or TORCH
    if there and supported(there.torch) and wanted in (None, "", there.torch, there.torch.split("+")[0]):
        torch = there.torch
    keeps = there is not None and there.torch == torch
    indexes, reason = ([], "") if keeps else torch_indexes(for_gpu)
    kernels = offered(gpus) if "kernels" in names else []
    extras = [name for name in names if name != "kernels"] + (["gpu"] if for_gpu and "gpu" not in names else [])
    return Plan(venv, there, gpus, torch, indexes, reason, extras, kernels)


def look_into(venv: Path) -> Environment | None:
    """What is in the folder, or None where nothing is. Raises Stop for what cannot be used, or is no environment."""
    try:
        if not venv.is_dir() or not any(venv.iterdir()):
            return None
    except OSError as error:
        raise Stop(f"{venv} cannot be read: {error.strerror}. Give another folder in VENV.") from error
    remove = f"Type rm -rf '{venv}' and then the same command, or give another folder in VENV."
    if not any((venv / mark).exists() for mark in ("pyvenv.cfg", "conda-meta")):
        raise Stop(f"{venv} is a folder, but no Python environment. Give another folder in VENV.")
    said = ask(venv, "import json, sys, pip; print(json.dumps('%d.%d.%d' % sys.version_info[:3]))")
    if said is None:
        raise Stop(f"{venv} is an environment whose Python or pip does not start, or only half of one. {remove}")
    if numbers(said) < (3, 10):
        raise Stop(f"{venv} has Python {said}, and this project needs 3.10 or newer. {remove}")
    if os.environ.get("PYTHON") and numbers(said)[:2] != sys.version_info[:2]:
        raise Stop(f"{venv} has Python {said}, and PYTHON names a Python {python_version()}. {remove}")
    return Environment(said, ask(venv, "import json, torch; print(json.dumps(torch.__version__))") or "")


def ask(venv: Path, code: str) -> Any:
    """What the environment's Python prints as JSON, or None where it fails."""
    try:
        done = subprocess.run([python_of(venv), "-c", code], capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def python_version() -> str:
    """Of this process, such as 3.12."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def python_of(venv: Path) -> str:
    return str(venv / "bin" / "python")


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine, as nvidia-smi has them."""
    rows = smi("name,compute_cap") or smi("name")  # a driver before 2021 does not know the second
    return [Gpu(name.strip(), int(cap) if cap.isdecimal() else 0) for name, cap in rows]


def smi(fields: str) -> list[tuple[str, str]]:
    """(name, digits before the point of the compute capability, "" where not asked for) of each GPU."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # none, or a driver that hangs
        return []
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith("No devices")]
    cells = [line.partition(",") for line in lines if done.returncode == 0]
    return [(name, cap.strip().partition(".")[0]) for name, _, cap in cells]


def chosen_extras() -> list[str]:
    """EXTRAS as names of pyproject.toml."""
    section = pyproject().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)
    names = [name.strip() for name in os.environ.get("EXTRAS", "dev").split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise Stop(f"EXTRAS names {unknown[0]!r}, which is none of {', '.join(known)}.")
    return names


def offered(gpus: list[Gpu]) -> list[Kernel]:
    """The kernels for these GPUs; all of them for a machine that is not this one."""
    newest = max((gpu.major for gpu in gpus), default=99)
    return [kernel for kernel in KERNELS if kernel.since <= newest]


def torch_indexes(for_gpu: bool) -> tuple[list[str], str]:
    """Indexes to try for torch, the last of which is "", pip's own configuration; and why."""
    given = os.environ.get("TORCH_INDEX")
    if given == "":
        return [""], "TORCH_INDEX is empty"
    if given is None and for_gpu:
        return [""], "the usual build, for GPUs"
    if given is None and sys.platform == "darwin":
        return [""], "the usual build for macOS, which computes on the CPU here"
    index = given or CPU_INDEX
    if silence := why_silent(index):
        return [""], f"which may bring the build for GPUs, 5 GB; {shown(index)} was skipped: {silence}"
    return [index, ""], "given as TORCH_INDEX" if given else "builds for the CPU, as there is no NVIDIA GPU"


def why_silent(index: str) -> str:
    """Why an index does not answer for torch, or "". In a thread, for looking up a name has no limit of its own."""
    if "@" in index:  # with a password in its address, which only pip can use
        return ""
    found = [f"no answer within {ANSWER_SECONDS:g} seconds"]

    def ask_index() -> None:
        try:
            with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=ANSWER_SECONDS) as answer:
                answer.read(1)
            found[0] = ""
        except urllib.error.URLError as error:
            # Certificates are pip's business, which may know others.
            found[0] = "" if isinstance(error.reason, ssl.SSLError) else f"{error.reason}"
        except OSError as error:
            found[0] = f"{error}"
        except Exception:  # an address in a form that pip knows and this library does not
            found[0] = ""

    thread = threading.Thread(target=ask_index, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return found[0]


def shown(index: str) -> str:
    """An index without the password that may be in its address."""
    return re.sub(r"//[^/@]*@", "//", index) or "pip's own configuration"


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def torch_range() -> str:
    found = re.search(r'"(torch>=[^"]*)"', pyproject())  # Python 3.10 has no tomllib
    assert found is not None
    return found[1]


def supported(version: str) -> bool:
    """Whether pyproject.toml allows this torch."""
    lowest, limit = (numbers(part) for part in torch_range().split(","))
    return lowest <= numbers(version)[:2] < limit


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def pin(package: str) -> str:
    """The requirement of pyproject.toml for a package, such as quack-kernels==0.6.5."""
    found = re.search(rf'"({package}==[^";]*)', pyproject())
    assert found is not None, package
    return found[1]


def described(plan: Plan) -> str:
    """The plan as lines."""
    there = f"there already, Python {plan.there.python}" if plan.there else f"new, Python {sys.version.split()[0]}"
    counted = {str(gpu): plan.gpus.count(gpu) for gpu in plan.gpus}
    rows = {
        "python": python_of(plan.venv) if plan.there else sys.executable,
        "where": f"{plan.venv} ({there})",
        "gpu": ", ".join(f"{n} x {gpu}" for gpu, n in counted.items()) or "none of NVIDIA",
        "torch": f"torch=={plan.torch}" if plan.indexes else f"torch=={plan.torch} stays",
        "index": f"{shown(plan.indexes[0])} ({plan.reason})" if plan.indexes else "not needed",
        "project": plan.project,
        "kernels": ", ".join(pin(kernel.package) for kernel in plan.kernels) or no_kernels(plan),
    }
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items())


def no_kernels(plan: Plan) -> str:
    if not plan.gpus:
        return "none: they need an NVIDIA GPU"
    names = ", ".join(pin(kernel.package) for kernel in offered(plan.gpus))
    return f"not asked for. To have {names} type: EXTRAS={','.join([*plan.extras, 'kernels'])} bash install.sh"
