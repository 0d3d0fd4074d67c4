"""Types of options that people write in several ways, for jsonargparse: counts of tokens, and lists of words.

To the rest of the program they are float and list[str].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type

# 1e9 is G for engineers and B for people who count parameters and tokens.
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
COUNT = re.compile(r"(?P<number>[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?)(?P<unit>[kmgbt]?)")


def read_tokens(given: Any) -> float:
    """A count of tokens: 1e10, 10_000_000_000, 10B, 500M, 1.5T, 2k. Raises ValueError for anything else."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    if not (isinstance(given, str) and (found := COUNT.fullmatch(given.strip().lower()))):
        raise ValueError(given)
    return round(float(found["number"]) * UNITS[found["unit"]], 3)  # 0.0011B is 1,100,000.0000000001 in floats


def read_words(given: Any) -> list[str]:
    """A list of words: one word, several joined by commas, or a JSON list. Raises ValueError for anything else."""
    if isinstance(given, str):
        given = [word.strip(" \"'") for word in given.strip("[] ").split(",")]
        given = [] if given == [""] else given
    if not isinstance(given, list) or not all(isinstance(word, str) and word for word in given):
        raise ValueError(given)
    return list(dict.fromkeys(given))


def read_ends(given: Sequence[str], budget: int) -> list[int]:
    """Counts of tokens in rising order: as read_tokens takes them, or such as 0.5x, multiples of `budget`.

    Raises ValueError for what is neither, and where the order is another.
    """
    exact = [Fraction(word[:-1]) * budget if word.endswith("x") else Fraction(read_tokens(word)) for word in given]
    ends = [int(end) for end in exact]
    if not ends or ends[0] < 1 or ends != sorted(set(ends)):
        raise ValueError(given)
    return ends


if TYPE_CHECKING:
    Tokens = float
    Words = list[str]
else:

    class Tokens(float):
        """A number of tokens; see read_tokens."""

    class Words(str):  # of the types whose name is all that the help shows
        """A list of words; see read_words."""

    register_type(Tokens, float, read_tokens, type_check=lambda value, _: type(value) is float)
    register_type(Words, list, read_words, type_check=lambda value, _: False)
