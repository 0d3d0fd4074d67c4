"""How long a start takes, from the first line of this process to the end of its first step."""

from __future__ import annotations

import time
from itertools import pairwise

_marks = [("", time.monotonic())]


def ended(phase: str) -> None:
    """A phase of the start has ended, which began where the one before ended. After the last one, see `told`."""
    _marks.append((phase, time.monotonic()))


def told() -> str:
    """A line about the phases so far. The next one begins now, for a process may start several runs."""
    spans = [f"{phase} {end - begin:.1f} s" for (_, begin), (phase, end) in pairwise(_marks)]
    line = f"start        {', '.join(spans)}; {_marks[-1][1] - _marks[0][1]:.1f} s in all"
    _marks[:] = [("", time.monotonic())]
    return line
