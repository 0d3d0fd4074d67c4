"""The kinds of values in a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from lit_gpt.errors import UserError


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raises UserError for a value that is there and is not of its kind; numbers are above 0, counts may be 0."""
    for key, kind in kinds.items():
        value = values.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf
        fits = {
            "a whole number": number and isinstance(value, int),
            "a count": type(value) is int and value >= 0,
            "a number": number,
            "true or false": isinstance(value, bool),
            "an object": isinstance(value, dict),
            "a list": isinstance(value, list),
        }
        if value is not None and not fits[kind]:
            above = " above 0" if "number" in kind else ""
            raise UserError(f"config.json: {key} is {value!r}; it must be {kind}{above}. Save the model again.")
