"""Which statements a model needs: those that its entry points read, what these read, and so on."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from lit_gpt.tools.remote.sources import PACKAGE, Name, Sources

TABLE = "BACKENDS"  # what lit_gpt.ops calls its tables of implementations; see lit_gpt.ops.backends
# An implementation that reads one of these is of an optional library.
LIBRARY = {Name(f"{PACKAGE}.ops.backends", name) for name in ("optional", "missing")}


class Needed:
    """What is left of the sources.

    names: all that is needed. statements: the same as statements of their modules. rows: of the tables, those that
    are of no optional library.
    """

    def __init__(self, sources: Sources, roots: Iterable[Name]):
        self.sources = sources
        self.names = self._closure(roots)
        self.statements = {id(s) for name in self.names for s in self._given(name)}
        while more := [name for name in self._registered() if name not in self.names]:
            self.names |= self._closure(more)
            self.statements |= {id(s) for name in self.names for s in self._given(name)}

    @property
    def modules(self) -> list[str]:
        """The modules of which something is left."""
        return sorted({name.module for name in self.names})

    def rows(self, module: str, table: ast.Dict) -> list[bool]:
        """Of each row of a table whether it stays: it does where no optional library is read for it."""
        reads = (self.sources[module].reads(value) for value in table.values)
        return [not LIBRARY & self._closure(names) for names in reads]

    def _closure(self, roots: Iterable[Name]) -> set[Name]:
        """These names and all that they read."""
        found, todo = set[Name](), list(roots)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self._read_by(name)
        return found

    def _read_by(self, name: Name) -> Iterator[Name]:
        module = self.sources[name.module]
        if name.name in module.imported:
            yield module.imported[name.name]
        for statement in self._given(name):
            table = table_of(statement)
            if table is None:
                yield from module.reads(statement)
            else:
                yield from self._read_by_table(name.module, statement, table)

    def _read_by_table(self, module: str, statement: ast.stmt, table: ast.Dict) -> Iterator[Name]:
        for value, stays in zip(table.values, self.rows(module, table)):
            if stays:
                yield from self.sources[module].reads(value)
        if isinstance(statement, ast.AnnAssign):
            yield from self.sources[module].reads(statement.annotation)

    def _given(self, name: Name) -> list[ast.stmt]:
        return [] if name.name is None else self.sources[name.module].bound.get(name.name, [])

    def _registered(self) -> Iterator[Name]:
        """What functions read that have no name but `_` and belong to a decorator that is needed."""
        for name in self.modules:
            module = self.sources[name]
            for statement in module.bound.get("_", []):
                assert isinstance(statement, ast.FunctionDef)
                if any(read in self.names for d in statement.decorator_list for read in module.reads(d)):
                    self.statements.add(id(statement))
                    yield from (read for read in module.reads(statement) if read.name != "_")


def table_of(statement: ast.stmt) -> ast.Dict | None:
    """The rows, where a statement is a table of implementations."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Dict):
        return None
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    return statement.value if isinstance(target, ast.Name) and target.id == TABLE else None
