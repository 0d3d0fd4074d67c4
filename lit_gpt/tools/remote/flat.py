"""The files that a model needs, cut to what it needs, side by side in one folder.

transformers copies the files of a model that it finds in lines `from .name import ...`, in one folder: so
lit_gpt/nn/norm.py becomes nn_norm.py, and what it imports of this package is imported from its siblings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from lit_gpt.tools.remote.needed import Needed, table_of
from lit_gpt.tools.remote.sources import PACKAGE, Module, Name, Sources, is_ours

HERE = f"{PACKAGE}.tools.remote."
WIDTH = 120  # of a line
NAMED = "# The other files: transformers copies those that this one names, and versions before 5 no others."


def flat_files(main: str, entries: Iterable[Name], given: Mapping[str, str]) -> dict[str, str]:
    """File name -> text: all that the module `main` and these entries need.

    entries: what is found by name when the model is built. given: module -> source, of modules that are no files of
    this package. The files that transformers loads by name, those of this folder, name every file that they need.
    """
    sources = Sources(given)
    roots = [Name(main, name) for name in sources[main].bound]
    needed = Needed(sources, [*roots, *entries])
    files = {_flat(name): _text(sources[name], needed) for name in needed.modules}
    direct = {name: set(re.findall(r"^from \.(?: import )?(\w+)", text, re.MULTILINE)) for name, text in files.items()}
    for loaded in sorted(_flat(name) for name in needed.modules if name.startswith(HERE)):
        others = files.keys() if loaded == _flat(main) else _reached(loaded, direct)
        named = re.findall(r"^from \.(\w+) import", files[loaded], re.MULTILINE)
        lines = [f"from .{name} import __name__ as _" for name in sorted(others - {loaded, *named})]
        files[loaded] += "\n".join(["", "", NAMED, *lines, ""])
    return {f"{name}.py": text for name, text in files.items()}


def _reached(name: str, direct: Mapping[str, set[str]]) -> set[str]:
    """The files that one imports, those that they import, and so on."""
    found, todo = set[str](), [name]
    while todo:
        if (file := todo.pop()) not in found:
            found.add(file)
            todo += direct[file]
    return found


def _flat(module: str) -> str:
    """The name of a module's file."""
    start = HERE if module.startswith(HERE) else f"{PACKAGE}."
    return module.removeprefix(start).replace(".", "_")


def _text(module: Module, needed: Needed) -> str:
    """What is left of a file, its imports among siblings; comments stay with the statement that they stand above."""
    out, end = [f"# Of {module.name}, cut to what this model needs."], 0
    used = {name.name for name in needed.names if name.module == module.name}
    for statement in module.body:
        above, start = module.lines[end : _start(statement) - 1], _start(statement)
        end = statement.end_lineno or start
        if isinstance(statement, ast.Import | ast.ImportFrom):
            out += [*_blank(above), *_import(statement, module, used)]
        elif id(statement) in needed.statements or _is_docstring(statement):
            out += [*above, *_lines(statement, module, needed)]
    return "\n".join(_tidy(out)) + "\n"


def _start(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


def _is_docstring(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)


def _blank(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.strip()]


def _import(statement: ast.Import | ast.ImportFrom, module: Module, used: Collection[str | None]) -> Iterator[str]:
    """The lines of an import, less the names that are not `used` here."""
    source = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    kept = [a for a in statement.names if source == "__future__" or (a.asname or a.name.split(".")[0]) in used]
    if not is_ours(source):
        yield from _wrapped("" if not source else f"from {source} ", kept)
        return
    modules = [a for a in kept if module.imported[a.asname or a.name].name is None]
    for alias in modules:
        flat = _flat(f"{source}.{alias.name}")
        yield f"from . import {flat} as {alias.asname or alias.name}"
    yield from _wrapped(f"from .{_flat(source)} ", [a for a in kept if a not in modules])


def _wrapped(start: str, names: list[ast.alias]) -> Iterator[str]:
    if not names:
        return
    listed = [ast.unparse(alias) for alias in names]
    line = f"{start}import {', '.join(listed)}"
    yield from [line] if len(line) <= WIDTH else [f"{start}import (", *(f"    {name}," for name in listed), ")"]


def _lines(statement: ast.stmt, module: Module, needed: Needed) -> list[str]:
    """The lines of a statement; of a table of implementations without those of optional libraries."""
    start, end = _start(statement), statement.end_lineno or statement.lineno
    table, dropped = table_of(statement), set[int]()
    if table is not None:
        above = table.lineno
        for key, value, stays in zip(table.keys, table.values, needed.rows(module.name, table)):
            assert key is not None and key.lineno > table.lineno, f"{module.name}: a row of a table needs a line"
            dropped |= set() if stays else set(range(above + 1, (value.end_lineno or value.lineno) + 1))
            above = value.end_lineno or value.lineno
    return [module.lines[i - 1] for i in range(start, end + 1) if i not in dropped]


def _tidy(lines: list[str]) -> Iterator[str]:
    """No more than two blank lines in a row, and none at the end."""
    while lines and not lines[-1].strip():
        lines.pop()
    for i, line in enumerate(lines):
        if line.strip() or i < 2 or lines[i - 1].strip() or lines[i - 2].strip():
            yield line
