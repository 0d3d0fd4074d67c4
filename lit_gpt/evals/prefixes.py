"""Texts that begin alike, such as questions after the same examples, or about the same document."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Ids = tuple[int, ...]
SHORTEST = 64  # tokens: a call of the model for a shorter beginning costs more than it saves


class Family(NamedTuple):
    """Contexts with the same first `shared` tokens; each has one token more, or several."""

    shared: int
    contexts: list[Ids]


def families(contexts: Sequence[Ids]) -> Iterator[Family]:
    """The contexts in families of one or more, each context once; a family of one shares nothing.

    A family ends where the next context, in the order of their tokens, has less than half of its beginning: so
    questions about one document are together, and not those about all documents that are introduced alike.
    """
    run, shared = list[Ids](), 0
    for context in sorted(contexts):
        alike = _common(run[-1], context) if run else 0
        if len(run) > 1:
            alike = min(alike, shared) if 2 * alike >= shared else 0
        if alike < SHORTEST and run:
            yield Family(shared, run)
            run, alike = [], 0
        run, shared = [*run, context], alike
    if run:
        yield Family(shared, run)


def _common(a: Ids, b: Ids) -> int:
    """Length of the common beginning, at least one token less than each has. By bisection: slices compare fast."""
    longest = min(len(a), len(b)) - 1
    return bisect.bisect_left(range(1, longest + 1), True, key=lambda n: a[:n] != b[:n])
