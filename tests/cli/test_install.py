"""install.sh: what it would install on other machines, by stand-ins for nvidia-smi, Python and a package index.

Nothing is installed here; `make setup` in a new clone does that.
"""

from __future__ import annotations

import ast
import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from script_module import script_module

ROOT = Path(__file__).parents[2]
PYTHONS = ["3.10", "3.12", "3.13"]
H200, B200, ADA = "NVIDIA H200, 9.0", "NVIDIA B200, 10.0", "NVIDIA GeForce RTX 4090, 8.9"
FOR_ALL = ["flash-linear-attention==0.6.0", "causal-conv1d==1.7.0", "mamba-ssm==2.3.2.post1"]
FOR_HOPPER = [*FOR_ALL, "quack-kernels==0.6.5", "flash-attn-4==4.0.0b36"]


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def nvidia_smi(*gpus: str) -> str:
    return "\n".join(f"echo '{gpu}'" for gpu in gpus) or "echo 'No devices were found'; exit 6"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs that stands first in PATH: a python3, and an nvidia-smi that fails, as without a driver."""
    program(tmp_path / "bin", "python3", f'exec "{sys.executable}" "$@"')
    program(tmp_path / "bin", "nvidia-smi", "exit 9")
    return tmp_path / "bin"


def start(machine: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """bash install.sh in another folder than this one, as a user would; no question is asked without a terminal."""
    ours = ("PYTHON", "VENV", "EXTRAS", "TORCH_INDEX", "TORCH_VERSION")
    environment = {key: value for key, value in os.environ.items() if key not in ours and "proxy" not in key.lower()}
    environment |= {"PATH": f"{machine}:/usr/bin:/bin", "VENV": str(machine.parent / "new"), "TORCH_INDEX": ""}
    command = ["bash", str(ROOT / "install.sh"), *words]
    return subprocess.run(
        command,
        env=environment | settings,
        cwd=machine,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def planned(machine: Path, **settings: str) -> dict[str, str]:
    """The rows of --dry-run, which must leave nothing behind."""
    done = start(machine, "--dry-run", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Nothing was installed (--dry-run).\n") and not (machine.parent / "new").exists()
    return {name: value.strip() for name, _, value in (line.partition(" ") for line in done.stdout.splitlines())}


def refused(machine: Path, *words: str, **settings: str) -> str:
    """The sentence that it ends with."""
    done = start(machine, *(words or ("--dry-run",)), **settings)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("gpus", "shown", "kernels"),
    [
        ([H200] * 8, "8 x NVIDIA H200 (Hopper)", FOR_HOPPER),
        ([B200], "1 x NVIDIA B200 (Blackwell)", FOR_HOPPER),
        ([ADA], "1 x NVIDIA GeForce RTX 4090 (Ampere or Ada)", FOR_ALL),
        ([ADA, H200], "1 x NVIDIA GeForce RTX 4090 (Ampere or Ada), 1 x NVIDIA H200 (Hopper)", FOR_HOPPER),
    ],
)
def test_a_gpu_and_its_kernels(machine, gpus, shown, kernels):
    """Kernels are offered with what to type, and are chosen by EXTRAS; nvidia-ml-py (extra gpu) comes by itself."""
    program(machine, "nvidia-smi", nvidia_smi(*gpus))
    rows = planned(machine, TORCH_INDEX="")
    assert rows["gpu"] == shown and rows["project"] == ".[dev,gpu]" and rows["torch"] == "torch==2.13.0"
    typed = "EXTRAS=dev,gpu,kernels bash install.sh"
    assert rows["kernels"] == f"not asked for. To have {', '.join(kernels)} type: {typed}"
    chosen = planned(machine, EXTRAS="dev,gpu,kernels")
    assert chosen["kernels"] == ", ".join(kernels) and chosen["project"] == ".[dev,gpu]"


def test_a_driver_that_does_not_know_compute_capabilities(machine):
    script = 'case "$1" in *compute_cap*) echo "Field is not a valid field to query."; exit 2;; esac'
    program(machine, "nvidia-smi", f"{script}\necho 'Tesla V100-SXM2-16GB'")
    rows = planned(machine)
    assert rows["gpu"] == "1 x Tesla V100-SXM2-16GB (of an unknown generation)" and ".[dev,gpu]" in rows["project"]


@pytest.mark.parametrize("script", [nvidia_smi(), "exit 9", "echo 'No devices were found'"])
def test_no_gpu(machine, script):
    program(machine, "nvidia-smi", script)
    rows = planned(machine)
    assert rows["gpu"] == "none of NVIDIA" and rows["project"] == ".[dev]"
    assert rows["kernels"] == "none: they need an NVIDIA GPU"


def test_a_login_node_installs_for_the_nodes_with_gpus(machine):
    rows = planned(machine, EXTRAS="dev,kernels", TORCH_INDEX="")
    assert rows["kernels"] == ", ".join(FOR_HOPPER) and rows["project"] == ".[dev,gpu]"


@pytest.fixture
def closed_port() -> Iterator[str]:
    """Taken, so that nobody else listens there, and refusing connections, since this does not listen either."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{s.getsockname()[1]}/whl/cpu"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that answers for torch, and delivers nothing."""
    (tmp_path / "index/torch").mkdir(parents=True)
    (tmp_path / "index/torch/index.html").write_text("<a href='torch-2.13.0+cpu-py3-none-any.whl'>torch</a>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_index_that_cannot_be_reached_is_skipped(machine, closed_port):
    rows = planned(machine, TORCH_INDEX=closed_port)
    assert rows["index"].startswith("pip's own configuration (") and f"{closed_port} was skipped" in rows["index"]
    assert "Connection refused" in rows["index"]


def test_an_index_that_has_no_torch_is_skipped(machine, index):
    assert f"{index}/other was skipped: " in planned(machine, TORCH_INDEX=f"{index}/other")["index"]


def test_an_index_that_answers_is_used_first(machine, index):
    assert planned(machine, TORCH_INDEX=index)["index"] == f"{index} (given as TORCH_INDEX)"
    secret = index.replace("//", "//me:secret@")  # only pip reads such addresses
    assert planned(machine, TORCH_INDEX=secret)["index"] == f"{index} (given as TORCH_INDEX)"
    assert planned(machine, TORCH_INDEX="")["index"] == "pip's own configuration (TORCH_INDEX is empty)"


@pytest.fixture
def plan_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    for name in ("PYTHON", "VENV", "EXTRAS", "TORCH_INDEX", "TORCH_VERSION"):
        monkeypatch.delenv(name, raising=False)
    return script_module("scripts/install_plan.py")


def test_pytorchs_cpu_index_comes_first_without_a_gpu_only(plan_module, monkeypatch):
    monkeypatch.setattr(plan_module, "why_silent", lambda index: "")
    assert plan_module.torch_indexes(False)[0] == ["https://download.pytorch.org/whl/cpu", ""]
    assert plan_module.torch_indexes(True)[0] == [""]
    monkeypatch.setattr(plan_module.sys, "platform", "darwin")
    assert plan_module.torch_indexes(False)[0] == [""]


def test_an_index_that_keeps_silent_is_left_in_time(plan_module, monkeypatch):
    """A port that takes connections and never answers, as firewalls have it."""
    monkeypatch.setattr(plan_module, "ANSWER_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert plan_module.why_silent(f"http://127.0.0.1:{silent.getsockname()[1]}") != ""


@pytest.fixture
def installer(plan_module):
    return script_module("scripts/install.py")


def make_plan(installer, folder: Path, **changes):
    fields = {"gpus": [], "torch": "2.13.0", "indexes": ["http://i", ""], "reason": "", "extras": ["dev"]}
    return installer.Plan(folder, None, **{**fields, "kernels": [], **changes})


def test_an_index_that_does_not_deliver_gives_way_to_pips_own(installer, monkeypatch, tmp_path, capsys):
    """It answered the question, and then pip fails with it."""
    asked = []
    monkeypatch.setattr(installer, "pip", lambda venv, *words: asked.append(words) or int("http://i" in words))
    monkeypatch.setattr(installer, "room", lambda venv: "")
    installer.install_torch(make_plan(installer, tmp_path))
    assert [("--index-url" in words, words[-1]) for words in asked] == [
        (True, "torch==2.13.0"),
        (False, "torch==2.13.0"),
    ]
    assert "http://i answered, but did not deliver torch 2.13.0." in capsys.readouterr().out


def test_a_kernel_that_fails_takes_nothing_along(installer, monkeypatch, tmp_path, capsys):
    def pip(venv, *words, stdout=None, **_):
        if "causal-conv1d==1.7.0" in words:
            stdout.write("Collecting it\nNameError: name 'version' is not defined\nnote: no fault of pip\n")
        if "mamba-ssm==2.3.2.post1" in words:
            assert "--no-deps" in words
            stdout.write("<string>:118: UserWarning: mamba_ssm was requested, but nvcc was not found.\nInvalid: None\n")
        return int("--no-build-isolation" in words and "quack-kernels==0.6.5" not in words)

    monkeypatch.setattr(installer, "pip", pip)
    monkeypatch.setattr(installer, "make_environment", lambda venv: None)
    monkeypatch.setattr(installer, "ask", lambda venv, code: ["2.13.0", None])
    plan = make_plan(installer, tmp_path, kernels=installer.offered([])[1:4])
    failed = installer.install(plan)
    assert [kernel.package for kernel, _ in failed] == ["causal-conv1d", "mamba-ssm"]
    pins = (tmp_path / "kernels.txt").read_text().split()
    assert "torch==2.13.0" in pins and "nvidia-cutlass-dsl==4.8.1" in pins
    installer.report(plan, failed, 61.0)
    said = capsys.readouterr().out
    assert "Not installed: causal-conv1d. Without it the short convolutions" in said
    assert "NameError: name 'version' is not defined (all of it: " in said
    assert "Mamba-2's 5 times. The reason: nvcc was not found, the compiler of the CUDA toolkit (all of it: " in said
    assert "Ready after 61 seconds: torch 2.13.0, 0.0 GB in" in said and (tmp_path / ".installed").exists()


def test_every_kernel_has_a_tested_version(plan_module):
    """In pyproject.toml, and on the page."""
    assert [plan_module.pin(kernel.package) for kernel in plan_module.KERNELS] == FOR_HOPPER
    page = (ROOT / "docs/installation.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+==[\w.]+)`", page, re.MULTILINE)) == set(FOR_HOPPER)


def test_no_room(installer, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda folder: usage._replace(free=10**8))
    with pytest.raises(installer.Stop, match=r"needs about 3 GB, and its disk has 0\.1 GB left") as stop:
        installer.check_place(make_plan(installer, tmp_path))
    assert stop.value.code == 3
    with pytest.raises(installer.Stop, match=r"pip could not install this. The disk of .* is full"):
        installer.stop_for_pip(tmp_path, "this")


def test_a_folder_that_cannot_be_written(installer):
    with pytest.raises(installer.Stop, match=r"/proc cannot be written: .*\. Use a folder of yours\."):
        installer.check_place(make_plan(installer, Path("/proc/new")))


def test_no_venv_module(installer, monkeypatch):
    """Debian's python3 without its package python3-venv."""
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(installer.Stop, match=r"sudo apt install python3\.\d+-venv"):
        installer.check_venv_module()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), "Stop"),
        (subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"]), "Stop"),
    ],
    ids=["interrupted", "full disk", "no pip"],
)
def test_half_an_environment_is_removed(installer, monkeypatch, tmp_path, error, raised):
    def fails(folder, **_):
        folder.mkdir()
        raise error

    monkeypatch.setattr(installer.venv, "create", fails)
    with pytest.raises(installer.Stop if raised == "Stop" else raised):
        installer.make_environment(tmp_path / "half")
    assert not (tmp_path / "half").exists()


def environment(folder: Path, python: str = "exit 1") -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    program(folder / "bin", "python", python)
    return folder


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("exit 1", "whose Python or pip does not start, or only half of one. Type rm -rf '"),
        ("echo '\"3.9.18\"'", "has Python 3.9.18, and this project needs 3.10 or newer. Type rm -rf '"),
    ],
)
def test_an_environment_that_cannot_be_used(machine, tmp_path, python, said):
    assert said in refused(machine, VENV=str(environment(tmp_path / "an old one", python)))


def test_a_folder_that_is_no_environment(machine, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    assert "is a folder, but no Python environment" in refused(machine, VENV=str(tmp_path / "mine"))


def test_an_environment_stays_with_its_torch(machine, tmp_path):
    venv = environment(
        tmp_path / "there", """case "$2" in *torch*) echo '"2.12.1+cu130"';; *) echo '"3.12.4"';; esac"""
    )
    rows = planned(machine, VENV=str(venv))
    assert rows["where"] == f"{venv} (there already, Python 3.12.4)"
    assert (rows["torch"], rows["index"]) == ("torch==2.12.1+cu130 stays", "not needed")
    assert planned(machine, VENV=str(venv), TORCH_VERSION="2.11.0")["torch"] == "torch==2.11.0"


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["--dryrun"], {}, "install.sh knows --dry-run and --help, not '--dryrun'."),
        ([], {"EXTRAS": "dev,kernel"}, "EXTRAS names 'kernel', which is none of data, gpu,"),
        ([], {"TORCH_VERSION": "2.9.1"}, "TORCH_VERSION is '2.9.1'; this project works with torch>=2.11,<2.15"),
        ([], {"PYTHON": "/no/python"}, "PYTHON is /no/python, which is no Python 3.10 or newer."),
    ],
)
def test_wrong_words_are_one_sentence(machine, words, settings, said):
    assert said in refused(machine, *words, **settings)


def test_no_python(tmp_path):
    """What stands first in PATH is too old, and nothing else is there."""
    for name in ("python3", "python"):
        program(tmp_path / "bin", name, "exit 1")
    for name in ("bash", "dirname"):
        os.symlink(shutil.which(name) or name, tmp_path / "bin" / name)
    done = subprocess.run(
        ["bash", str(ROOT / "install.sh")], env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: No Python 3.10 or newer was found.")


def test_help_names_every_setting(machine):
    done = start(machine, "--help")
    sources = "".join((ROOT / "scripts" / name).read_text() for name in ("install.py", "install_plan.py"))
    settings = set(re.findall(r'environ\.get\("(\w+)"', sources))
    assert done.returncode == 0 and settings == {"PYTHON", "VENV", "EXTRAS", "TORCH_VERSION", "TORCH_INDEX"}
    assert settings <= set(re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE))


def test_the_citation_is_of_this_version():
    """The keys that the Citation File Format 1.2 requires, and the facts of pyproject.toml."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project and f'license = "{citation["license"]}"' in project
    assert all(f'name = "{author["name"]}"' in project for author in citation["authors"])


@functools.cache
def real_python(version: str) -> str | None:
    """A Python of this version that starts, where this machine has one: in PATH, or kept by pyenv."""
    kept = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    for candidate in (f"python{version}", *map(str, kept)):
        with_path = shutil.which(candidate)
        if with_path and subprocess.run([with_path, "-c", ""], capture_output=True).returncode == 0:
            return with_path
    return None


def python_files() -> list[str]:
    folders = ("lit_gpt", "scripts", "plots", "benchmarks", "launch_scripts", "tests")
    return [str(p) for folder in folders for p in (ROOT / folder).rglob("*.py")] + [str(p) for p in ROOT.glob("*.py")]


@pytest.mark.parametrize("version", PYTHONS)
def test_other_pythons(machine, version):
    """The dry run with each of them, and a compile of every file; absent ones have a stand-in, in name only."""
    real = real_python(version)
    if real is None:
        program(machine, f"python{version}", f'exec "{sys.executable}" "$@"')
    rows = planned(machine, PYTHON=real or f"python{version}")
    assert rows["torch"] == "torch==2.13.0"
    if real:
        assert f"Python {version}." in rows["where"]
        code = "import sys; [compile(open(p, 'rb').read(), p, 'exec') for p in sys.stdin.read().split('\\n')]"
        done = subprocess.run([real, "-c", code], input="\n".join(python_files()), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# Of the standard library after 3.10. What a module has since then, pyright looks for (pythonVersion in pyproject.toml).
TOO_NEW = {"tomllib", "wsgiref.types", "annotationlib", "compression", "pathlib.types", "string.templatelib"}
TOO_NEW |= {f"typing.{name}" for name in ("Self", "Never", "LiteralString", "Required", "NotRequired", "Unpack")}
TOO_NEW |= {f"typing.{name}" for name in ("TypeVarTuple", "override", "assert_never", "reveal_type", "TypeIs")}
TOO_NEW |= {"enum.StrEnum", "datetime.UTC", "contextlib.chdir", "itertools.batched", "hashlib.file_digest"}


def test_every_file_is_python_3_10():
    """Its grammar, as far as this Python knows it, and what it imports."""
    for path in python_files():
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"), path, feature_version=(3, 10))):
            if isinstance(node, ast.Import):
                assert not TOO_NEW & {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert not TOO_NEW & {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}, path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert f"{node.value.id}.{node.attr}" not in TOO_NEW, path


def test_another_python_is_told_where_the_packages_are() -> None:
    """In a terminal where .venv was not activated, every command ended in a traceback."""
    words = [sys.executable, "-S", "-E", "pretrain.py", "--help"]  # -S: without the packages of the environment
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "source .venv/bin/activate" in done.stderr
