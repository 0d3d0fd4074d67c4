"""The one exception that is meant for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_BAD_INPUT = 2  # exit code of every command that raised a UserError
EXIT_NOT_SAVED = 74  # EX_IOERR of sysexits.h: a run ended, and its last checkpoint could not be written


class UserError(Exception):
    """Something the user typed, or a file the user gave, cannot be used.

    The message says what was given, what is allowed, and what to type. Entry
    points print it without a traceback and exit with EXIT_BAD_INPUT. Broken
    invariants of our own are `assert`s, never this.
    """


class NotInstalled(UserError):
    """An optional library is missing: what needs no values, such as a Plan, can be made without it."""


def did_you_mean(given: str, allowed: Iterable[str], n: int = 3) -> str:
    """A suggestion such as " Did you mean 'samba'?", or "" when nothing is close."""
    close = difflib.get_close_matches(given, list(allowed), n=n, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
