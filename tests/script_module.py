"""Scripts and tools as Python runs them: a script with its siblings to import, a tool with its exit code."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lit_gpt.config.command import run_command

ROOT = Path(__file__).resolve().parents[1]


def script_module(path: str) -> ModuleType:
    """path: from the root of the repository, such as "benchmarks/train_step.py"."""
    sys.path.insert(0, str((ROOT / path).parent))
    try:
        return importlib.import_module(Path(path).stem)
    finally:
        sys.path.pop(0)


def tool(main: Callable[[list[str]], int], *words: object) -> int:
    """The exit code of a tool."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["tool", *map(str, words)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which run_command changes for good
        run_command(main)
    assert isinstance(left.value.code, int)
    return left.value.code
