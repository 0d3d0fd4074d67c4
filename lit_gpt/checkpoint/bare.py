"""A checkpoint file of ArchScale: tensors under its own names, and the options of its run where it has them.

    {"model": tensors, "optimizer": ..., "hparams": options, "iter_num": ..., "step_count": ...}    or the tensors alone

Nothing in it runs: it is read with weights_only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.checkpoint.state import Tensors
from lit_gpt.checkpoint.untrusted import load_zip, plain_tensors, reason
from lit_gpt.errors import UserError

COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module's parameters


class Bare(NamedTuple):
    """What the file holds. options: of the run, numbers and words; {} where it has none. step: 0 where it says none."""

    tensors: Tensors
    options: dict[str, int | float | str]
    step: int


def read_bare(path: Path) -> Bare | None:
    """The contents of a .pth file without a meta; None for an exported file, and for one that cannot be opened.

    Raises UserError for a file that holds neither.
    """
    content = _content(path) if path.suffix == ".pth" else None
    if content is None or (isinstance(content, dict) and "meta" in content):
        return None  # load_exported says what is wrong with it, if anything is
    try:
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        tensors = plain_tensors(content.get("model", content))
    except ValueError as error:
        raise UserError(
            f"{path} is neither an exported file nor a checkpoint of ArchScale ({reason(error)}). Give one whose "
            'contents are a table of names and tensors, or {"model": such a table}.'
        ) from error
    return Bare({name.removeprefix(COMPILED): t for name, t in tensors.items()}, _options(content), _step(content))


def _content(path: Path) -> Any:
    try:
        return load_zip(path, path.stat().st_size, mmap=True)
    except Exception:  # a damaged pickle may raise anything; whoever reads it next says so
        return None


def _options(content: dict[str, Any]) -> dict[str, int | float | str]:
    given = content.get("hparams") if "model" in content else None
    plain = given.items() if isinstance(given, dict) else ()
    return {name: value for name, value in plain if isinstance(name, str) and isinstance(value, int | float | str)}


def _step(content: dict[str, Any]) -> int:
    step = content.get("step_count")
    return step if type(step) is int and 0 <= step < 1 << 63 else 0
