"""The mixers of this model by name: each is one of the files beside this one."""

from __future__ import annotations

import importlib
from typing import Any


class Registry:
    """Stands in for lit_gpt.registry.Registry, which looks into a folder: here a folder is the start of a file name.

    package: of the entries, such as lit_gpt.nn.mixers, whose entry mamba is nn_mixers_mamba.py. kind, hook: unused.
    """

    def __init__(self, package: str, kind: str, hook: str):
        self.prefix = package.split(".", 1)[1].replace(".", "_")

    def load(self, name: str) -> Any:
        """The entry's module."""
        return importlib.import_module(f".{self.prefix}_{name}", __package__)
