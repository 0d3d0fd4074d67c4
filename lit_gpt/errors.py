"""The exceptions that are meant for people, and the exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_BAD_INPUT = 2  # exit code of every command that raised a UserError
EXIT_NOT_WRITTEN = 3  # a result could not be written, such as on a full disk; of every command
EXIT_NOT_FINITE = 4  # gradients not finite
EXIT_PEER_LOST = 5  # a collective timed out or a peer is gone
EXIT_NOT_OWNER = 6  # the run folder is another process's, or gone


class UserError(Exception):
    """Something the user typed, or a file the user gave, cannot be used.

    The message says what was given, what is allowed, and what to type. Entry
    points print it without a traceback and exit with its code. Broken
    invariants of our own are `assert`s, never this.
    """

    code = EXIT_BAD_INPUT


class NotWritten(UserError):
    """Something that a run makes could not be written, such as on a full disk; what was there before is still there."""

    code = EXIT_NOT_WRITTEN


class NotOwner(UserError):
    """The run folder belongs to another process, or was removed; nothing may be written to it."""

    code = EXIT_NOT_OWNER


class NotInstalled(UserError):
    """An optional library is missing: what needs no values, such as a Plan, can be made without it."""


def did_you_mean(given: str, allowed: Iterable[str], n: int = 3) -> str:
    """A suggestion such as " Did you mean 'samba'?", or "" when nothing is close."""
    close = difflib.get_close_matches(given, list(allowed), n=n, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
