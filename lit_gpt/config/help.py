"""The help of a run's options, in groups, read from where the options are declared.

A group is a dataclass of lit_gpt/config/groups, and its docstring is its help:

    Data: the tokens to train on.             The title, and what the options are about.

    train_data_dir: Folder with ...           An option that most runs need, and what it means.
        Example: --train_data_dir data/mine   How it is typed, where that is not obvious.

    num_workers: Threads that ...             After an empty line: options that the overview only names.
        Default: ...                          In words, where there is no value to show: for None and empty lists.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from lit_gpt.config.bounds import Choices, Ends, Text, hints, parts
from lit_gpt.config.explain import ELSEWHERE, meant
from lit_gpt.config.names import TOKENS, read_train_name
from lit_gpt.config.resolve import ALIASES
from lit_gpt.config.run import RunConfig
from lit_gpt.config.words import TokenCounts, Tokens, Words
from lit_gpt.errors import UserError

NARROWEST, WIDEST = 80, 120  # columns; longer lines are hard to read
COLUMN = 30  # where meanings begin in the overview
ENTRY = re.compile(r"^([\w.]+): ", re.MULTILINE)
PART = re.compile(r"^ +(Default|Example): ", re.MULTILINE)
SHOWN: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT", Tokens: "TOKENS"}
SHOWN |= {TokenCounts: "TOKENS,TOKENS,...", Words: "NAME,NAME,...", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """One option in words. name: such as "--depth". value: what follows it. usual: the overview says what it means.

    tokens: those of --train_name that set it.
    """

    name: str
    value: str
    meaning: str
    default: str = ""
    example: str = ""
    usual: bool = True
    tokens: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """Such as "--depth INTEGER"."""
        return f"{self.name} {self.value}".rstrip()

    def in_full(self) -> list[str]:
        """Its lines in the help of a group."""
        text = self.meaning + (f" Default: {self.default}." if self.default else "")
        if self.tokens:
            text += f" Token{'s' * (len(self.tokens) > 1)} of --train_name: {', '.join(self.tokens)}."
        lines = wrapped(self.head, "  ", " " * 10) + wrapped(text, " " * 6)
        return lines + (wrapped(f"Example: {self.example}", " " * 6, " " * 8) if self.example else [])

    def in_short(self, sentences: int = 1) -> list[str]:
        """Its first sentences beside its name, or below a long name."""
        text = ". ".join(self.meaning.split(". ")[:sentences]).removesuffix(".")
        text += f" (default: {self.default})" if self.default else ""
        head, column = f"  {self.head}", " " * COLUMN
        if len(head) <= COLUMN - 2:
            return wrapped(text or "-", head.ljust(COLUMN), column)
        return [*wrapped(self.head, "  ", " " * 10), *wrapped(text, column)]


@dataclass(frozen=True)
class Group:
    """Options under one title. about: what they are about."""

    title: str
    about: str
    options: tuple[Option, ...]

    @property
    def key(self) -> str:
        """What is typed after --help."""
        return self.title.split()[0].strip(",").lower()

    def answers_to(self, word: str) -> bool:
        """Whether a word means this group: one of its title, or the first part of all its options."""
        words = re.findall(r"[\w-]{4,}", self.title.lower())
        return word.lower() in words or all(o.name.startswith(f"--{word}.") for o in self.options)

    def in_full(self) -> str:
        """The help of the group."""
        lines = [line for option in self.options for line in option.in_full()]
        return "\n".join([*wrapped(f"{self.title}: {self.about}", "", " " * 4), *lines])

    def in_short(self) -> str:
        """The group in the overview: what most runs need, and the names of the rest."""
        lines = [line for option in self.options if option.usual for line in option.in_short()]
        if rest := [option.name for option in self.options if not option.usual]:
            lines += wrapped(f"{'also: ' if lines else ''}{', '.join(rest)}", "  ", " " * 8)
        return "\n".join([*wrapped(f"{self.title} (--help {self.key}): {self.about}", "", " " * 4), *lines])


@functools.cache
def groups() -> tuple[Group, ...]:
    """All options of a run, in the order of RunConfig's fields."""
    found = []
    for kind in reversed(RunConfig.__mro__[1:-1]):
        inner = [f for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.default_factory)]
        found.append(_group(kind))
        found += [_group(field.default_factory, f"{field.name}.") for field in inner]  # type: ignore[arg-type]
    return tuple(found)


def taken(names: Collection[str], defaults: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups of a command that has only these options, such as "base_hps.d0". defaults: those that are its own."""

    def here(option: Option) -> Option:
        own = option.name[2:] in defaults
        return dataclasses.replace(option, default=shown_value(defaults[option.name[2:]])) if own else option

    kept = [(group, tuple(here(o) for o in group.options if o.name[2:] in names)) for group in groups()]
    return tuple(dataclasses.replace(group, options=options) for group, options in kept if options)


def about(topic: str, of: Sequence[Group]) -> str:
    """The help of a group, of one option, or of "all". Raises UserError for what is none of them."""
    if topic == "all":
        return "\n\n".join(group.in_full() for group in of)
    options = {option.name: option for group in of for option in group.options}
    name = "--" + topic.removeprefix("--")
    name = ALIASES.get(name, name if name in options else name.replace("--", "--base_hps.", 1))
    keys = {group.key: group for group in of}
    if topic in keys:
        return keys[topic].in_full()
    if name in options:
        return "\n".join(options[name].in_full())
    if found := [group for group in of if group.answers_to(topic.removeprefix("--"))]:
        return "\n\n".join(group.in_full() for group in found)
    known = [key[2:] for key in options] + list(keys)
    raise UserError(
        f"{topic!r} is no option and no group of options{meant(topic.removeprefix('--'), known, ELSEWHERE)} "
        f"The groups are {', '.join(keys)}; give one of them, an option, or all, such as --help {of[0].key}."
    )


def value_of(hint: Any) -> str:
    """What an option of this type takes: "INTEGER", "true or false", "one of: linear, cosine", ..."""
    words = list(dict.fromkeys(word for part in parts(hint) if part is not type(None) for word in _words(part)))
    if words == ["true", "false"]:
        return "true or false"
    return words[0] if len(words) == 1 else f"one of: {', '.join(words)}"


def shown_value(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown_value, value))
    return (
        re.sub(r"e([-+])0*", lambda e: f"e{e[1].strip('+')}", f"{value:g}") if isinstance(value, float) else str(value)
    )


def _words(hint: Any) -> list[str]:
    """The words that a value of this type may be, or what stands for it, such as INTEGER."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if isinstance(inner[1], Choices):
            return [f"any of: {', '.join(inner[1].choices)}"]
        return inner[1].shown.split(", ") if isinstance(inner[1], (Text, Ends)) else _words(inner[0])
    if origin is Literal:
        return [str(word) for word in inner]
    if hint is bool:
        return ["true", "false"]
    if origin is list:
        return _words(inner[0])
    return ["JSON" if origin is dict else SHOWN.get(hint, "PATH")]  # functions are types of paths: tools/_cli.py


def _group(kind: type, prefix: str = "") -> Group:
    """The group that a dataclass and its docstring describe; an option with dots in its name is one of a part."""
    text = inspect.cleandoc(kind.__doc__ or "")
    head, _, rest = text.partition("\n\n")
    title, _, what = " ".join(head.split()).removesuffix(".").partition(": ")
    usual, gap, _ = rest.partition("\n\n")
    pieces = ENTRY.split(rest)[1:]
    entries = dict(zip(pieces[::2], pieces[1::2]))
    first = set(ENTRY.findall(usual)) if gap else set()
    return Group(title, what, tuple(_option(kind, prefix, n, said, n in first) for n, said in entries.items()))


def _option(kind: type, prefix: str, name: str, said: str, usual: bool) -> Option:
    """An option, from what its group says of it. A dotted name is of a part, as base_hps.n0_mult."""
    owner, _, last = name.rpartition(".")
    declared = type(getattr(RunConfig(), owner)) if owner else kind
    meaning, *rest = (" ".join(piece.split()) for piece in PART.split(said))
    said_of = dict(zip(rest[::2], rest[1::2]))
    default = said_of.get("Default") or shown_value(getattr(declared(), last))
    setters = {token: fields[name] for token, fields in TOKENS.items() if not prefix and name in fields}
    unasked = _of_default_name()
    if setters and name in unasked:
        default += f"; {shown_value(unasked[name])} with the default --train_name"
    tokens = tuple(t if v in (True, t) else f"{t} ({shown_value(v)})" for t, v in setters.items())
    value = value_of(hints(declared)[last])
    return Option(f"--{prefix}{name}", value, meaning, default, said_of.get("Example", ""), usual, tokens)


@functools.cache
def _of_default_name() -> dict[str, Any]:
    """The options that the default of --train_name sets."""
    return read_train_name(RunConfig.train_name).fields


def width() -> int:
    """Of lines, in characters: the terminal's, within reason."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    """The text in lines as wide as the terminal; words with hyphens stay whole."""
    rest = first if rest is None else rest
    return textwrap.wrap(
        text, width(), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )
