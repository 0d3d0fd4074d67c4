"""The one check of options given as JSON: names, types, notes and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from lit_gpt.config.arguments import arguments_of, check, described
from lit_gpt.config.bounds import Bounds
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Options:
    size: Annotated[int, Bounds(1)] = 8
    rank: Annotated[int, Bounds(1)] | None = None
    fraction: Annotated[float, Bounds(0, 1, "high")] = 0.5
    kind: Literal["row", "column"] = "row"
    on: bool = False
    label: str = "x"


def library(lr=1.0, betas=(0.9, 0.95), coefficients=(2, -1.5, 0.5), steps=5, floor=-0.8, beta3=None, eps: float = 1e-8):
    """A function as libraries have them."""


ANNOTATED = [
    (
        {"size": 0},
        "The option size of the thing x is 0; it must be a whole number of at least 1. The default is 8 (--x).",
    ),
    ({"size": True}, "is true; it must be a whole number of at least 1."),
    ({"size": 2.0}, "is 2.0; it must be"),
    ({"size": "8"}, 'is "8"; it must be'),
    ({"rank": 0}, "a whole number of at least 1 or null. The default is null"),
    ({"fraction": 1}, "a number of at least 0 and below 1."),
    ({"fraction": math.nan}, "is NaN"),
    ({"fraction": -math.inf}, "is -Infinity"),
    ({"kind": "diagonal"}, 'it must be one of row, column. The default is "row"'),
    ({"on": 1}, "true or false"),
    ({"label": 3}, "it must be text."),
    ({"sise": 3}, "The thing x has no option 'sise' (--x). Did you mean 'size'? It has fraction, kind, label"),
]
PLAIN = [
    ({"lr": -1}, "a number from 0 on"),
    ({"lr": math.inf}, "is Infinity; it must be a number"),
    ({"betas": [0.9, 1]}, "numbers from 0 to below 1"),
    ({"betas": [0.9]}, "2 numbers"),
    ({"coefficients": [1, 2]}, "3 numbers"),
    ({"steps": 0}, "a whole number from 1 on"),
    ({"floor": 0.1}, "a number up to 0"),
    ({"floor": -math.inf}, "is -Infinity"),
    ({"beta3": 1}, "numbers from 0 to below 1"),
    ({"eps": "small"}, "a number. The default is 1e-08"),
]


@pytest.mark.parametrize(
    ("of", "given", "says"), [(Options, *row) for row in ANNOTATED] + [(library, *row) for row in PLAIN]
)
def test_refused(of: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        check("thing x", "--x", given, arguments_of(of))
    assert says in str(error.value)


@pytest.mark.parametrize("of", [Options, library])
def test_defaults_are_allowed(of: Any) -> None:
    known = arguments_of(of)
    check("thing x", "--x", {name: argument.default for name, argument in known.items()}, known)


@pytest.mark.parametrize("given", [{"size": 1, "rank": 3, "fraction": 0}, {"rank": None, "fraction": 0.25}])
def test_allowed(given: dict[str, Any]) -> None:
    check("thing x", "--x", given, arguments_of(Options))
    check("thing x", "--x", {"coefficients": [1, -9, 1], "eps": 1, "beta3": 0}, arguments_of(library))


def test_nothing_to_set() -> None:
    with pytest.raises(UserError, match=r"no option 'a' \(--x\)\. It has none\.$"):
        check("thing x", "--x", {"a": 1}, {})


def test_words_of_bounds_without_an_upper_end() -> None:
    assert described(Annotated[float, Bounds(0, without="low")]) == "a number above 0"
    assert described(Annotated[int, Bounds(1)] | None) == "a whole number of at least 1 or null"
