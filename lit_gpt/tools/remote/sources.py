"""The files of this package, read as statements: what each binds, what each reads, where its lines are."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import UserError

PACKAGE = "lit_gpt"
ROOT = Path(__file__).parents[2]
# Modules that are written from another one's source: a folder of entries becomes files side by side; and versions of
# transformers before 5 load no model whose parameters have attributes, such as a role.
STAND_INS = {
    f"{PACKAGE}.registry": f"{PACKAGE}.tools.remote.siblings",
    f"{PACKAGE}.roles": f"{PACKAGE}.tools.remote.starts",
}


class Name(NamedTuple):
    """A name that a module has at its top: lit_gpt.nn.norm, RMSNorm. Without a name, the module itself."""

    module: str
    name: str | None


class Module:
    """A source file. bound: each name at its top -> the statements that give it."""

    def __init__(self, name: str, source: str):
        self.name, self.lines = name, source.splitlines()
        self.body = ast.parse(source).body
        self.bound: dict[str, list[ast.stmt]] = {}
        self.imported: dict[str, Name] = {}  # name here -> what it is, of this package
        self._reads: dict[ast.AST, set[Name]] = {}
        for statement in self.body:
            for given in binds(statement):
                self.bound.setdefault(given, []).append(statement)
            for alias, target in self._first_party(statement):
                self.imported[alias] = target

    def _first_party(self, statement: ast.stmt) -> Iterator[tuple[str, Name]]:
        if isinstance(statement, ast.Import) and any(a.name.split(".")[0] == PACKAGE for a in statement.names):
            raise UserError(
                f"{self.name} has the line {ast.unparse(statement)!r}, which the export cannot follow: write "
                "from lit_gpt... import ... instead."
            )
        if isinstance(statement, ast.ImportFrom) and (module := statement.module) and is_ours(module):
            for alias in statement.names:
                inner = f"{module}.{alias.name}"
                yield alias.asname or alias.name, Name(inner, None) if path_of(inner) else Name(module, alias.name)

    def reads(self, node: ast.AST) -> set[Name]:
        """Names of this package that code reads: those at the top of this module, and of modules it imports."""
        if node not in self._reads:
            self._reads[node] = set(self._read_in(node))
        return self._reads[node]

    def _read_in(self, node: ast.AST) -> Iterator[Name]:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                target = self.imported.get(inner.value.id)
                if target is not None and target.name is None:
                    yield Name(target.module, inner.attr)
            if isinstance(inner, ast.Name) and inner.id in self.bound:
                yield Name(self.name, inner.id)


def binds(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file gives."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    return [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def is_ours(module: str) -> bool:
    """Whether a dotted name is of this package."""
    return module.split(".")[0] == PACKAGE


def path_of(module: str) -> Path | None:
    """The file of a module of this package; None where there is none."""
    base = ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


class Sources:
    """The modules of this package by name. given: sources that are no files of it, such as plugins."""

    def __init__(self, given: Mapping[str, str]):
        self.given = {name: Module(name, source) for name, source in given.items()}

    def __getitem__(self, module: str) -> Module:
        """A module, or what stands in for it, under its own name."""
        return self.given[module] if module in self.given else _read(module)


@functools.cache
def _read(module: str) -> Module:
    path = path_of(STAND_INS.get(module, module))
    assert path is not None, module
    return Module(module, path.read_text(encoding="utf-8"))
