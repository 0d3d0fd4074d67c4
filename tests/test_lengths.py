"""Files and functions stay short enough to read: the limits of the house."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_gpt"
FILE_LIMIT, FUNCTION_LIMIT, ENTRY_POINT_LIMIT = 500, 100, 150
FILES = sorted(PACKAGE.rglob("*.py"))


def is_kernel(path: Path) -> bool:
    """Kernels are long because unrolling them by hand is their point."""
    return PACKAGE / "ops" in path.parents and "_kernel" in path.name


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lengths(path: Path) -> None:
    if is_kernel(path):
        return
    assert lines(path) <= FILE_LIMIT, f"{path.name} has {lines(path)} lines; split it (limit {FILE_LIMIT})."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LIMIT, f"{path.name}: {node.name} has {length} lines (limit {FUNCTION_LIMIT})."


def test_entry_points_are_thin() -> None:
    long = {p.name: lines(p) for p in ROOT.glob("*.py") if lines(p) > ENTRY_POINT_LIMIT}
    assert not long, f"Entry points over {ENTRY_POINT_LIMIT} lines: {long}. Move their work into lit_gpt."
