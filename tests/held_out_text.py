"""Documents with names that come back, for questions about held-out text."""

from __future__ import annotations

import random

from tiny_run import WORDS


def document(number: int) -> str:
    """Lines with indentation; half of them end in one of a few names that no other document has."""
    draw = random.Random(number)
    names = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(8)]
    lines = []
    for _ in range(60):
        last = [draw.choice(names)] if draw.random() < 0.5 else []
        lines.append(draw.choice(("", "  ")) + " ".join([*draw.choices(WORDS, k=draw.randint(2, 5)), *last]))
    return "\n".join(lines) + "\n"
