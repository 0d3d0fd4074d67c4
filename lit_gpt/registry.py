"""A registry is a folder: file name = entry name = what the user types.

Adding an entry is adding one file; there is no list to edit. Files that start
with an underscore are helpers and not entries.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from lit_gpt.errors import UserError, did_you_mean


class Registry:
    """The modules of one package, looked up by name and imported on first use.

    package: dotted name of the folder, e.g. "lit_gpt.architectures".
    kind: what an entry is called in messages, e.g. "model family".
    exclude: modules of the package that are shared machinery rather than entries.
    """

    def __init__(self, package: str, kind: str, exclude: tuple[str, ...] = ()):
        self.package, self.kind, self.exclude = package, kind, exclude

    def names(self) -> list[str]:
        """Every entry's name, sorted."""
        path = importlib.import_module(self.package).__path__
        found = (m.name for m in pkgutil.iter_modules(path))
        return sorted(n for n in found if not n.startswith("_") and n not in self.exclude)

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def load(self, name: str) -> ModuleType:
        """Import the entry's module. Raises UserError with suggestions when there is none."""
        if name not in self.names():
            raise self.unknown(name)
        return importlib.import_module(f"{self.package}.{name}")

    def resolve(self, name: str) -> str:
        """The entry that is spelt like a name (see spelt_like); the name itself where there is none."""
        return spelt_like(name, self.names()) or name

    def unknown(self, name: str, aliases: Iterable[str] = ()) -> UserError:
        """What to raise for a name that no entry has, with suggestions among names and aliases."""
        names = self.names()
        hint = did_you_mean(name.lower().replace("-", "_"), [*names, *aliases])
        return UserError(f"Unknown {self.kind} {name!r}.{hint} Available: {', '.join(names)}.")


def spelt_like(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that differs in case, hyphens, underscores and spaces only: SF-AdamW is sf_adamw."""
    return next((n for n in names if _letters(n) == _letters(name)), None)


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_ ")
