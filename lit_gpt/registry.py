"""A registry is a folder: file name = entry name = what the user types.

Every plain file of the folder is an entry, and a sub-package is none: helpers live in one, or in another folder.
Adding an entry is adding one file; there is no list to edit. A built-in entry that is one call may be a row of a
table instead, and a file outside the repository may be an entry too (see plugins.py).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from lit_gpt.errors import UserError, did_you_mean


class Registry:
    """The modules of one package, looked up by name and imported on first use.

    package: dotted name of the folder, e.g. "lit_gpt.architectures".
    kind: what an entry is called in messages, e.g. "model family".
    hook: the function that makes a file an entry, e.g. "build(depth, shape)": its name and its first parameters.
    rows: name -> entry, of those that are no files; each has what a file would have. A file comes before a row.
    plugins: name -> module, of files of this kind that the command line named. strangers: name -> kind, of the others.
    """

    def __init__(self, package: str, kind: str, hook: str, rows: Mapping[str, Any] | None = None):
        self.package, self.kind, self.hook, self.rows = package, kind, hook, rows or {}
        self.plugins: dict[str, Any] = {}
        self.strangers: dict[str, str] = {}

    def files(self) -> list[str]:
        """The names of the folder's files."""
        path = importlib.import_module(self.package).__path__
        return [m.name for m in pkgutil.iter_modules(path) if not m.ispkg]

    def built_in(self) -> set[str]:
        """The names of the folder's files and of the rows."""
        return {*self.files(), *self.rows}

    def names(self) -> list[str]:
        """Every entry's name, sorted."""
        return sorted(self.built_in() | self.plugins.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def load(self, name: str) -> Any:
        """The entry: its module, imported, or its row. Raises UserError with suggestions when there is none."""
        if name in self.plugins:
            return self.plugins[name]
        if name in self.files():
            return importlib.import_module(f"{self.package}.{name}")
        if name in self.rows:
            return self.rows[name]
        raise self.unknown(name)

    def takes(self, entry: Any) -> bool:
        """Whether a module or row has the hook of this kind."""
        name, _, parameters = self.hook.rstrip(")").partition("(")
        function = getattr(entry, name, None)
        if not callable(function):
            return False
        wanted = [parameter for parameter in parameters.split(", ") if parameter]
        return list(inspect.signature(function).parameters)[: len(wanted)] == wanted

    def resolve(self, name: str) -> str:
        """The entry that is spelt like a name (see spelt_like); the name itself where there is none."""
        return spelt_like(name, self.names()) or name

    def unknown(self, name: str, aliases: Iterable[str] = ()) -> UserError:
        """What to raise for a name that no entry has, with suggestions among names and aliases."""
        names = self.names()
        hint = did_you_mean(name.lower().replace("-", "_"), [*names, *aliases])
        if name in self.strangers:
            hint = f" The plugin of that name is of another kind: {self.strangers[name]}."
        return UserError(f"Unknown {self.kind} {name!r}.{hint} Available: {', '.join(names)}.")


def spelt_like(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that differs in case, hyphens, underscores and spaces only: SF-AdamW is sf_adamw."""
    return next((n for n in names if _letters(n) == _letters(name)), None)


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_ ")
