"""A script of the repository as a module, imported as Python runs it: the siblings it imports are in its own folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def script_module(path: str) -> ModuleType:
    """path: from the root of the repository, such as "benchmarks/train_step.py"."""
    sys.path.insert(0, str((ROOT / path).parent))
    try:
        return importlib.import_module(Path(path).stem)
    finally:
        sys.path.pop(0)
