"""The floors of the house: a room imports only from lower floors, at the top of its files.

A room is a folder or a module directly below lit_gpt; inside one, imports are free.
"""

from __future__ import annotations

import ast
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
    ("parallel", "checkpoint", "metrics"),
    ("preflight",),
    ("train", "evals"),
    ("tools",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ("errors", "registry", "config", "architectures", "scaling")
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
        if room not in FLOOR_OF:
            found.append(f"{place}: {name} is in no known room")
        elif room != here and FLOOR_OF[room] >= FLOOR_OF.get(here, -1):
            found.append(f"{place}: {here} (floor {FLOOR_OF.get(here)}) imports {room} (floor {FLOOR_OF[room]})")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


def test_every_room_has_a_floor() -> None:
    unknown = {room_of(p) for p in FILES} - FLOOR_OF.keys() - {""}
    assert not unknown, f"Give {', '.join(sorted(unknown))} a floor in FLOORS."


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/x.py", "import torch\nimport lit_gpt.ops.loss\nfrom lit_gpt.data import cursor\nfrom . import y", 0),
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
