"""What a value may be: a note that stands in an option's type, and the one checker that reads these notes.

    depth: Annotated[int, Bounds(1, 10_000)] = 16
    out_dir: Annotated[str, Text("a path", 4096)] | None = None

A note says in words what it allows, and whether it allows a value. Numbers without a note must be finite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from lit_gpt.config.words import read_ends

LONGEST_FILE_NAME = 255  # bytes, of every file system in use
LONGEST_PATH = 4096  # bytes, Linux
SHOWN = 60  # characters of a value that a message repeats


class Limit(Protocol):
    """A note: `words` end the sentence "it must be ..."."""

    @property
    def words(self) -> str: ...
    def allows(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Bounds:
    """A finite number from low to high; without high, from low on. `without`: which end is not allowed itself.

    or_zero: 0 is allowed beside these, and switches off.
    """

    low: float
    high: float = math.inf
    without: Literal["", "low", "high", "both"] = ""
    or_zero: bool = False

    @property
    def words(self) -> str:
        """Such as "from 1 to 10,000", "at least 0 and below 1", "above 0", "0, or at least 1"."""
        if self.or_zero:
            return f"0, or {replace(self, or_zero=False).words}"
        low, high = (f"{end:,.10g}".replace("e+", "e") for end in (self.low, self.high))
        above = "above" if self.without in ("low", "both") else "at least"
        if self.high == math.inf:
            return f"{above} {low}"
        if not self.without:
            return f"from {low} to {high}"
        return f"{above} {low} and {'below' if self.without in ('high', 'both') else 'at most'} {high}"

    def allows(self, value: Any) -> bool:
        """Whether the number is within; NaN is in no range."""
        if self.or_zero and value == 0:
            return True
        inside = self.low <= value <= self.high
        without = {"low": (self.low,), "high": (self.high,), "both": (self.low, self.high)}.get(self.without, ())
        return inside and value not in without


@dataclass(frozen=True)
class Text:
    """Characters that can be printed and stored, from one to `longest` bytes of UTF-8, none of `without`.

    what: "a path" and the like. path: `~` at the start is the home folder; see `path_fields`. shown: what the help
    calls such a value.
    """

    what: str
    longest: int
    without: str = ""
    path: bool = False
    shown: str = "NAME"

    @property
    def words(self) -> str:
        """Such as "a path of 1 to 4,096 bytes of UTF-8 without control characters"."""
        others = f", {' or '.join(self.without)}" if self.without else ""
        return f"{self.what} of 1 to {self.longest:,} bytes of UTF-8 without control characters{others}"

    def allows(self, value: Any) -> bool:
        """True and false are no text, but of another part of the option's type."""
        if isinstance(value, bool):
            return True
        text = str(value)  # a tool may give a pathlib.Path
        stored = text.encode(errors="surrogatepass")
        unusable = any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" or c in self.without for c in text)
        names = stored.split(b"/") if self.path else []
        fits = len(stored) <= self.longest and all(len(name) <= LONGEST_FILE_NAME for name in names)
        return bool(text.strip()) and fits and not unusable


@dataclass(frozen=True)
class Choices:
    """A list of some of these words."""

    choices: tuple[str, ...]

    @property
    def words(self) -> str:
        """Such as "any of csv, wandb, joined by commas"."""
        return f"any of {', '.join(self.choices)}, joined by commas"

    def allows(self, value: Any) -> bool:
        """Whether every word is one of them."""
        return set(value) <= set(self.choices)


@dataclass(frozen=True)
class Ends:
    """A list of token counts, or of multiples of the default budget, in rising order; see words.read_ends."""

    words: str = "token counts such as 500M or multiples of the default budget such as 0.5x, rising, joined by commas"
    shown: str = "TOKENS,TOKENS,..."

    def allows(self, value: Any) -> bool:
        """Whether it can be read; where both kinds are mixed, the order is known once the budget is."""
        kinds = [[word for word in value if word.endswith("x") is multiple] for multiple in (False, True)]
        try:
            return all(not kind or read_ends(kind, 1 << 62) for kind in kinds)
        except (ValueError, ZeroDivisionError, OverflowError):
            return False


@dataclass(frozen=True)
class StepsOrLast:
    """A list of steps of a run, and of `last`, its last one."""

    words: str = "steps from 1 to 1,000,000,000, or last, joined by commas"
    shown: str = "STEP,STEP,..."

    def allows(self, value: Any) -> bool:
        """Whether each word is one of these."""
        return all(word == "last" or (re.fullmatch("[0-9]{1,10}", word) and 1 <= int(word) <= 10**9) for word in value)


@dataclass(frozen=True)
class Each:
    """A list of numbers that are all within a limit."""

    limit: Limit

    @property
    def words(self) -> str:
        """Such as "numbers joined by commas, each from 1 to 10"."""
        return f"numbers joined by commas, each {self.limit.words}"

    def allows(self, value: Any) -> bool:
        """Whether the limit allows every number."""
        return all(map(self.limit.allows, value))


def violations(options: Any, prefix: str = "") -> list[str]:
    """A sentence for every field of a dataclass of options, and of those within it, whose value is not allowed."""
    found: list[str] = []
    for name, value in vars(options).items():
        if dataclasses.is_dataclass(value):
            found += violations(value, f"{prefix}{name}.")
            continue
        limit = _limits(type(options)).get(name)
        if value is not None and limit is not None and not limit.allows(value):
            found.append(f"--{prefix}{name} is {shown(value)}; it must be {limit.words}")
        elif not all(map(math.isfinite, _numbers(value))):
            found.append(f"--{prefix}{name} is {shown(value)}; its numbers must be finite")
    return found


def unset(options: Any, prefix: str = "") -> list[str]:
    """Names of the fields that are None against their type, as null in a YAML file makes them."""
    kinds, found = hints(type(options)), list[str]()
    for name, value in vars(options).items():
        if dataclasses.is_dataclass(value):
            found += unset(value, f"{prefix}{name}.")
        elif value is None and type(None) not in parts(kinds[name]):
            found.append(f"{prefix}{name}")
    return found


def path_fields(kind: type) -> list[str]:
    """The fields of a dataclass of options that hold paths."""
    return [name for name, limit in _limits(kind).items() if isinstance(limit, Text) and limit.path]


def shown(value: Any) -> str:
    """A value as a message repeats it: in one line, and not without end."""
    text = repr(value) if isinstance(value, str) else str(value)
    if isinstance(value, list):
        text = ",".join(map(str, value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def parts(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins, or the type itself; notes stay."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@functools.cache
def hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """Field or argument -> type with notes, of a dataclass of options or a function."""
    return get_type_hints(kind, include_extras=True)


@functools.cache
def _limits(kind: type) -> dict[str, Limit]:
    noted = {name: [p for p in parts(hint) if get_origin(p) is Annotated] for name, hint in hints(kind).items()}
    return {name: found[0].__metadata__[0] for name, found in noted.items() if found}


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a value as JSON holds it."""
    if isinstance(value, float):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for each in inner:
        yield from _numbers(each)
