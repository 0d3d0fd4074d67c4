"""Types of options that people write in several ways, for jsonargparse: counts of tokens, and lists of both.

To the rest of the program they are float, list[str] and list[float].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type

# 1e9 is G for engineers and B for people who count parameters and tokens.
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
COUNT = re.compile(r"(?P<number>[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?)(?P<unit>[kmgbt]?)")
FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # how we call them, and how torch does
# Short, since Fraction("1e99999999") never ends.
MULTIPLE = re.compile(r"(\d{1,9}|\d{0,9}\.\d{1,9}|\d{1,9}/[1-9]\d{0,8})x", re.ASCII)


def read_tokens(given: Any) -> float:
    """A count of tokens: 1e10, 10_000_000_000, 10B, 500M, 1.5T, 2k. Raises ValueError for anything else."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    if not (isinstance(given, str) and (found := COUNT.fullmatch(given.strip().lower()))):
        raise ValueError(given)
    return round(float(found["number"]) * UNITS[found["unit"]], 3)  # 0.0011B is 1,100,000.0000000001 in floats


def write_tokens(count: int) -> str:
    """The shortest spelling of a count that read_tokens reads back: 100M, 1.5B, 2.048k, 512."""
    unit = next((unit for unit in "TBMk" if count >= UNITS[unit.lower()]), "")
    return f"{(Decimal(count) / Decimal(UNITS[unit.lower()])).normalize():f}{unit}"


def read_words(given: Any) -> list[str]:
    """A list of words: one word, several joined by commas, or a JSON list. Raises ValueError for anything else."""
    given = _parts(given)
    if not isinstance(given, list) or not all(isinstance(word, str) and word for word in given):
        raise ValueError(given)
    return list(dict.fromkeys(given))


def read_ends(given: Sequence[str], budget: int) -> list[int]:
    """Counts of tokens in rising order: as read_tokens takes them, or such as 0.5x, multiples of `budget`.

    Raises ValueError for what is neither, and where the order is another.
    """
    exact = [Fraction(w[:-1]) * budget if MULTIPLE.fullmatch(w) else Fraction(read_tokens(w)) for w in given]
    ends = [int(end) for end in exact]
    if not ends or ends[0] < 1 or ends != sorted(set(ends)):
        raise ValueError(given)
    return ends


def read_token_counts(given: Any) -> list[float]:
    """Counts of tokens, smallest first, each once: one, several joined by commas, or a JSON list.

    Raises ValueError as read_tokens does.
    """
    given = _parts(given)
    return sorted({read_tokens(count) for count in (given if isinstance(given, list) else [given])})


def _parts(given: Any) -> Any:
    """The parts of a text that commas join, with brackets or without; what is no text, as it is."""
    if not isinstance(given, str):
        return given
    parts = [part.strip(" \"'") for part in given.strip("[] ").split(",")]
    return [] if parts == [""] else parts


if TYPE_CHECKING:
    Tokens = float
    Words = list[str]
    TokenCounts = list[float]
else:

    class Tokens(float):
        """A number of tokens; see read_tokens."""

    class Words(str):  # of the types whose name is all that the help shows
        """A list of words; see read_words."""

    class TokenCounts(str):
        """Several numbers of tokens; see read_token_counts."""

    register_type(Tokens, float, read_tokens, type_check=lambda value, _: type(value) is float)
    register_type(Words, list, read_words, type_check=lambda value, _: False)
    register_type(TokenCounts, list, read_token_counts, type_check=lambda value, _: False)
