"""What --optimizer_args may hold: the keyword arguments of whatever builds an optimizer, by their types and defaults.

A value must have the type that the argument is annotated with, or that of its default; a sequence the length of the
default. Where the default is in a range, so must be the value: decay rates (betas) in [0, 1), counts from 1, other
numbers from 0, or up to 0 where the default is negative.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from math import inf, nextafter
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from lit_gpt.errors import UserError, did_you_mean

UNKNOWN = inspect.Parameter.empty
UP_TO_0 = nextafter(0.0, inf)  # the first number that is more


class Knob(NamedTuple):
    """One argument: annotated type (UNKNOWN without) and default."""

    hint: Any
    default: Any


def knobs_of(function: Callable[..., Any]) -> dict[str, Knob]:
    """The arguments of a function or class that have defaults."""
    found = inspect.signature(function, eval_str=True).parameters
    return {name: Knob(p.annotation, p.default) for name, p in found.items() if p.default is not UNKNOWN}


def check(optimizer: str, given: Mapping[str, Any], knobs: Mapping[str, Knob]) -> None:
    """Raise UserError for the first argument that is no knob, or whose value does not fit it."""
    for name, value in given.items():
        if name not in knobs:
            all_of_them = f"It has: {', '.join(sorted(knobs))}" if knobs else "It has none"
            raise UserError(
                f"--optimizer_args {dict(given)} do not fit {optimizer}: {name!r} is no knob of it."
                f"{did_you_mean(name, knobs)} {all_of_them}."
            )
        if wanted := _objection(name, value, knobs[name]):
            raise UserError(
                f"--optimizer_args.{name} {value} cannot be used by {optimizer}: give {wanted} "
                f"(the default is {knobs[name].default})."
            )


def _objection(name: str, value: Any, knob: Knob) -> str:
    """What to give instead, "" for a value that fits."""
    hint, default = knob
    if isinstance(default, (tuple, list)):
        hint = tuple[(float,) * len(default)]  # type: ignore[misc]
    elif hint is UNKNOWN and default is not None:
        hint = type(default)
    if not _fits(value, hint):
        return _words(hint)
    defaults = [0.0] if default is None and "beta" in name else _numbers(default)
    if len(defaults) > 1 and min(defaults) < 0:  # coefficients of a polynomial
        return ""
    for v, d in zip(_numbers(value), defaults):
        low, high, words = _range(name, d)
        if not low <= v < high and v != d:
            return words
    return ""


def _range(name: str, default: float) -> tuple[float, float, str]:
    if "beta" in name and 0 <= default < 1:
        return 0, 1, "numbers from 0 to below 1"
    if isinstance(default, int) and default >= 1:
        return 1, inf, "a whole number from 1 on"
    return (0, inf, "a number from 0 on") if default >= 0 else (-inf, UP_TO_0, "a number up to 0")


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as a command line or JSON holds it, is of a type; types that neither can hold are let pass."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"{len(parts)} numbers"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "null"}
    return words.get(hint, str(hint))
