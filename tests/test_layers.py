"""The floors of the house: a room imports only from lower floors, at the top of its files.

A room is a folder or a module directly below lit_gpt; inside one, files import each other, but never in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_gpt"
FLOORS = (
    ("errors",),  # the ground floor; the registry stands on it
    ("registry", "utils"),
    ("config",),
    ("architectures", "scaling", "ops", "roles"),
    ("data", "nn"),
    ("model", "init", "optim"),
    ("parallel", "checkpoint", "metrics", "plugins"),
    ("preflight",),
    ("evals",),
    ("train",),
    ("lab",),
    ("tools",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ("errors", "registry", "config", "architectures", "scaling", "data")
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """First path part below lit_gpt, folder or module; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def targets(node: ast.AST, path: Path) -> list[str]:
    """Dotted names that an import statement reads, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parts[: -node.level]
        module = ".".join((*package, *filter(None, [module])))
    return [f"{module}.{alias.name}" for alias in node.names] if module == "lit_gpt" else [module]


def imports(tree: ast.AST, path: Path) -> list[tuple[str, int, bool]]:
    """(dotted name, line, inside a function) of every import of a file."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    local = {id(inner) for f in functions for inner in ast.walk(f)}
    return [(name, n.lineno, id(n) in local) for n in ast.walk(tree) for name in targets(n, path)]  # type: ignore[attr-defined]


def violations(source: str, path: Path) -> list[str]:
    """What a file of the package imports that it must not."""
    here, found = room_of(path), []
    for name, line, local in imports(ast.parse(source), path):
        place = f"{path.relative_to(ROOT)}:{line}"
        if name.split(".")[0] == "torch" and here in WITHOUT_TORCH:
            found.append(f"{place}: {here} works without torch")
        if name.split(".")[0] != "lit_gpt":
            continue
        if local:
            found.append(f"{place}: {name} is imported inside a function; move it to the top of the file")
        room = name.split(".")[1]
        if here in WITHOUT_TORCH and room in ("ops", "roles"):
            found.append(f"{place}: {here} works without torch, which {room} imports")
        if room not in FLOOR_OF:
            found.append(f"{place}: {name} is in no known room")
        elif room != here and FLOOR_OF[room] >= FLOOR_OF.get(here, -1):
            found.append(f"{place}: {here} (floor {FLOOR_OF.get(here)}) imports {room} (floor {FLOOR_OF[room]})")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


def file_of(path: Path) -> str:
    """The dotted name of a file; that of its folder for an __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph(sources: Mapping[Path, str]) -> dict[str, set[str]]:
    """File -> the files that it imports, by name. `from a import b` is file a.b where there is one, else a."""
    names, found = {file_of(path) for path in sources}, {}
    for path, source in sources.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(source)):
            modules = targets(node, path)
            if isinstance(node, ast.ImportFrom):
                modules += [f"{module}.{alias.name}" for module in modules for alias in node.names]
            inner = {m for m in modules if m in names}
            wanted |= {m for m in inner if not any(other.startswith(f"{m}.") for other in inner)}
        found[file_of(path)] = wanted
    return found


def circle(imported: Mapping[str, set[str]]) -> list[str]:
    """Files that import each other, the first one again at the end; [] where there is no circle."""
    done: set[str] = set()

    def visit(file: str, way: list[str]) -> list[str]:
        if file in way:
            return [*way[way.index(file) :], file]
        if file in done:
            return []
        found = next((c for other in sorted(imported[file]) if (c := visit(other, [*way, file]))), [])
        done.add(file)
        return found

    return next((c for file in sorted(imported) if (c := visit(file, []))), [])


def test_no_files_import_each_other() -> None:
    """ops/attention and ops/flash did, for a type."""
    found = circle(graph({path: path.read_text(encoding="utf-8") for path in FILES}))
    assert not found, "a circle of imports: " + " -> ".join(found)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"ops/a.py": "from lit_gpt.ops import b", "ops/b.py": "if TYPE_CHECKING:\n    from .a import x"}, True),
        ({"ops/__init__.py": "from lit_gpt.ops.a import x", "ops/a.py": "from lit_gpt.ops import y"}, True),
        (
            {"ops/__init__.py": "from lit_gpt.ops.a import x", "ops/a.py": "from lit_gpt.ops import b", "ops/b.py": ""},
            False,
        ),
        ({"ops/a.py": "import lit_gpt.ops.b", "ops/b.py": "from . import c", "ops/c.py": "from .a import x"}, True),
        (
            {"ops/a.py": "from lit_gpt.ops import b, c", "ops/b.py": "from .c import x", "ops/c.py": "import torch"},
            False,
        ),
    ],
)
def test_the_check_of_circles(sources: dict[str, str], expected: bool) -> None:
    assert bool(circle(graph({PACKAGE / name: source for name, source in sources.items()}))) == expected


def test_data_is_read_without_torch() -> None:
    """Preparing data, and looking at it, starts in a fraction of the time that torch takes to import."""
    names = [file_of(path) for path in FILES if room_of(path) == "data"]
    code = (
        "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_room_has_a_floor() -> None:
    unknown = {room_of(p) for p in FILES} - FLOOR_OF.keys() - {""}
    assert not unknown, f"Give {', '.join(sorted(unknown))} a floor in FLOORS."


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/x.py", "import numpy\nimport lit_gpt.config.model\nfrom lit_gpt.data import cursor\nfrom . import y", 0),
        ("data/x.py", "import torch", 1),
        ("data/x.py", "import lit_gpt.ops.loss", 1),
        ("data/x.py", "from lit_gpt import nn", 1),
        ("data/x.py", "from lit_gpt.nn import norm", 1),
        ("data/x.py", "import lit_gpt.train.loop", 1),
        ("data/deep/x.py", "from ...nn import norm", 1),
        ("data/deep/x.py", "from ..cursor import take", 0),
        ("roles.py", "from .ops import loss", 1),
        ("train/x.py", "if TYPE_CHECKING:\n    from lit_gpt.tools import plan", 1),
        ("train/x.py", "def f():\n    import wandb", 0),
        ("train/x.py", "class A:\n    async def f(self):\n        from lit_gpt.model import GPT", 1),
        ("train/x.py", "from lit_gpt.basement import x", 1),
        ("scaling/x.py", "from torch import nn", 1),
        ("__init__.py", "from lit_gpt import errors", 1),
    ],
)
def test_the_check_itself(file: str, source: str, expected: int) -> None:
    assert len(violations(source, PACKAGE / file)) == expected
