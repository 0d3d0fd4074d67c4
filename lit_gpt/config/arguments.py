"""Options given as JSON (--optimizer_args, --mixer_options), checked against what takes them: a function or dataclass.

The command line itself is checked by jsonargparse, which sees a mapping of anything here. A value must have the type
that the argument is annotated with, or that of its default; a sequence the length of the default. A number must be
finite, and allowed by the note in its type (bounds.py). Arguments of libraries have no notes: where such a default is
in a range, so must be the value: decay rates (betas) in [0, 1), counts from 1, other numbers from 0, or up to 0 where
the default is negative.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from lit_gpt.config.bounds import parts
from lit_gpt.errors import UserError, did_you_mean

UNKNOWN = inspect.Parameter.empty
UP_TO_0 = math.nextafter(0.0, math.inf)  # the first number above 0: as an end that is left out, it allows 0
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null", Path: "a path"}


class Argument(NamedTuple):
    """One argument: its type with notes (UNKNOWN without) and its default."""

    hint: Any
    default: Any


def arguments_of(function: Callable[..., Any]) -> dict[str, Argument]:
    """The arguments of a function, class or dataclass that have defaults."""
    found = inspect.signature(function, eval_str=True).parameters
    return {name: Argument(p.annotation, p.default) for name, p in found.items() if p.default is not UNKNOWN}


def check(owner: str, option: str, given: Mapping[str, Any], arguments: Mapping[str, Argument]) -> None:
    """Raise UserError for the first given value whose name is no argument, or which does not fit it.

    owner: whose arguments they are, such as "mixer gdn". option: where they were given, such as "--mixer_options".
    """
    for name, value in given.items():
        if name not in arguments:
            known = f"It has {', '.join(sorted(arguments)) or 'none'}."
            raise UserError(f"The {owner} has no option {name!r} ({option}).{did_you_mean(name, arguments)} {known}")
        if wanted := _wanted(name, value, arguments[name]):
            default = json.dumps(arguments[name].default, default=str)
            raise UserError(
                f"The option {name} of the {owner} is {json.dumps(value)}; it must be {wanted}. The default is "
                f"{default} ({option})."
            )


def described(hint: Any) -> str:
    """What a type with notes allows, in words, such as "a whole number of at least 1 or null"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words = inner[1].words
        return words if inner[0] is str else f"{described(inner[0])} {'of ' * words.startswith('at least')}{words}"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"{len(inner)} numbers"
    union = parts(hint)
    return " or ".join(map(described, union)) if len(union) > 1 else WORDS.get(hint, str(hint))


def _wanted(name: str, value: Any, argument: Argument) -> str:
    """What to give instead, in words; "" for a value that fits."""
    hint, default = argument
    if isinstance(default, (tuple, list)):
        hint = tuple[(float,) * len(default)]  # type: ignore[misc]
    elif hint is UNKNOWN and default is not None:
        hint = type(default)
    if not _fits(value, hint):
        return described(hint)
    if any(get_origin(part) is Annotated for part in parts(hint)):
        return ""
    defaults = [0.0] if default is None and "beta" in name else _numbers(default)
    if len(defaults) > 1 and min(defaults) < 0:  # coefficients of a polynomial
        return ""
    for v, d in zip(_numbers(value), defaults):
        low, high, words = _range(name, d)
        if not low <= v < high and v != d:
            return words
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as JSON holds it, is of a type; types that JSON cannot hold are let pass."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0]) and inner[1].allows(value)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, value, inner))
    if len(union := parts(hint)) > 1:
        return any(_fits(value, part) for part in union)
    if hint in (int, float):  # true is no number, 2 is a float too, and infinity is neither
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and (isinstance(value, int) or math.isfinite(value))
    hint = str if hint is Path else hint
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


def _range(name: str, default: float) -> tuple[float, float, str]:
    """The range of a library's argument, guessed from its name and default: low, high (left out), and in words."""
    if "beta" in name and 0 <= default < 1:
        return 0, 1, "numbers from 0 to below 1"
    if isinstance(default, int) and default >= 1:
        return 1, math.inf, "a whole number from 1 on"
    return (0, math.inf, "a number from 0 on") if default >= 0 else (-math.inf, UP_TO_0, "a number up to 0")


def _numbers(value: Any) -> list[float]:
    """The numbers of a value that is one or a sequence of them; true and false are none."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
