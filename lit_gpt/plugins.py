"""Plugins: entries of registries in files outside the repository, which --plugins names.

A plugin is the file that would make the entry in its folder of lit_gpt (docs/adding.md), in any other place. Its name
is the entry's, and its function says of which kind it is: build(depth, shape) a family, transfer a scaling rule, and
so on (Registry.hook). A run folder keeps a copy of each, in plugins/. That is for reading, and for whoever names it:
code runs because a person typed --plugins, never because a checkpoint, an export or a run folder holds it.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lit_gpt.architectures import FAMILIES
from lit_gpt.data.formats import FORMATS
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import MIXERS
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.registry import Registry
from lit_gpt.scaling.rules import RULES
from lit_gpt.utils.files import regular, write_bytes

KINDS: tuple[Registry, ...] = (FAMILIES, MIXERS, OPTIMIZERS, RULES, FORMATS)
FOLDER = "plugins"  # of a run folder
DIGITS = 12  # of a digest, as git shows them


@dataclass(frozen=True)
class Plugin:
    """A file that was loaded: where it lies, its bytes, its module, and the registry that it belongs to."""

    path: Path
    source: bytes
    module: ModuleType
    kind: Registry

    @property
    def digest(self) -> str:
        """Of the file's bytes; see digest."""
        return digest(self.source)


_loaded: dict[str, Plugin] = {}  # entry name -> plugin, of this process's command line


def load_plugins(paths: Iterable[str]) -> None:
    """Make the entries of these files known, and forget those of an earlier command line.

    Raises UserError, with file and line where there is one, for a file that cannot be read, fails, is no entry of any
    kind or of several, or has the name of a built-in entry or of another plugin.
    """
    found: dict[str, Plugin] = {}
    for given in paths:
        plugin = _load(Path(given).expanduser())
        if plugin.path.stem in found:
            raise UserError(
                f"--plugins names two files {plugin.path.name}. Rename one: the file's name is the entry's."
            )
        found[plugin.path.stem] = plugin
    for kind in KINDS:
        kind.plugins = {name: plugin.module for name, plugin in found.items() if plugin.kind is kind}
        kind.strangers = {name: plugin.kind.kind for name, plugin in found.items() if plugin.kind is not kind}
    _loaded.clear()
    _loaded.update(found)


def digest(source: bytes) -> str:
    """Two plugins are the same where this is."""
    return hashlib.sha256(source).hexdigest()[:DIGITS]


def digests() -> dict[str, str]:
    """Entry name -> digest, of the plugins of this command line: a part of what makes a run this run."""
    return {name: plugin.digest for name, plugin in _loaded.items()}


def source_of(name: str) -> str | None:
    """The text of the plugin of this command line with that entry; None where there is none."""
    return _loaded[name].source.decode() if name in _loaded else None


def keep_plugins(folder: Path) -> None:
    """Write a copy of every plugin into a run folder."""
    for name, plugin in _loaded.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_bytes(folder / FOLDER / f"{name}.py", plugin.source)


def changed_plugins(kept: Mapping[str, str]) -> list[str]:
    """Names of loaded plugins whose file is not what it was; kept: digests() of then."""
    return [name for name, digest in digests().items() if kept.get(name, digest) != digest]


def _load(path: Path) -> Plugin:
    try:
        source = regular(path, "Give --plugins Python files.").read_bytes()
    except OSError as error:
        raise UserError(f"--plugins {path} cannot be read ({error.strerror}). Give a Python file.") from error
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"--plugins {path}: the file's name is the entry's, so it must be such as my_rule.py.")
    plugin = _loaded.get(path.stem)
    if plugin is None or (plugin.path, plugin.source) != (path, source):
        module = _execute(path, source)
        plugin = Plugin(path, source, module, _kind_of(path, module))
        for hook in (plugin.kind.hook.partition("(")[0], "rules"):  # an optimizer may have `rules` instead
            if callable(function := getattr(module, hook, None)):
                setattr(module, hook, _guarded(function, path))
    if path.stem in plugin.kind.built_in():
        raise UserError(f"--plugins {path} has the name of a built-in {plugin.kind.kind}. Rename the file.")
    return plugin


def _execute(path: Path, source: bytes) -> ModuleType:
    """Run the file. Its module is found by name afterwards, as dataclasses and torch.compile need."""
    module, file = ModuleType(f"plugin_{path.stem}_{digest(source)}"), str(path)
    module.__file__ = file
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)  # it has __future__ imports of its own
    except (Exception, SystemExit) as error:  # a script that calls sys.exit would end the run with its code
        del sys.modules[module.__name__]
        raise _failure(path, error) from error
    return module


def _guarded(hook: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """The hook, whose errors say which line of the plugin they come from; what it is called with is as before."""

    @functools.wraps(hook)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return hook(*args, **options)
        except (UserError, torch.OutOfMemoryError):  # say what they are already
            raise
        except Exception as error:
            raise _failure(path, error) from error

    return call


def _failure(path: Path, error: BaseException) -> UserError:
    """In one line: the last line of the plugin on the way to the error, and what is wrong."""
    file = str(path)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else (lines or [1])[-1]
    what = " ".join(str(error).split()).rstrip(".")
    what = what if isinstance(error, UserError) else f"{type(error).__name__}: {what}"
    beside = isinstance(error, ModuleNotFoundError) and error.name and path.with_name(f"{error.name}.py").is_file()
    hint = " A plugin cannot import files beside it: copy what it needs, or install it as a package." * bool(beside)
    return UserError(f"The plugin {path}, line {line}, fails: {what}.{hint}")


def _kind_of(path: Path, module: ModuleType) -> Registry:
    kinds = [kind for kind in KINDS if kind.takes(module)]
    if len(kinds) == 1:
        return kinds[0]
    known = ", ".join(f"{kind.hook}: {kind.kind}" for kind in KINDS)
    raise UserError(
        f"The plugin {path} is {'several entries' if kinds else 'no entry'}: one function must say what it is "
        f"({known}). See docs/adding.md."
    )
