"""What is asked of a model, and what comes back: a continuation of a context, and how likely it is."""

from __future__ import annotations

from typing import NamedTuple

from lit_gpt.evals.prefixes import Ids


class Request(NamedTuple):
    """What is to be scored: the tokens of `continuation`, each given all before it. Both hold one token or more."""

    context: Ids
    continuation: Ids


class Score(NamedTuple):
    """ln p of each token of the continuation, and whether it was the likeliest."""

    log_p: list[float]
    likeliest: list[bool]

    @property
    def total(self) -> float:
        """ln p of the continuation, in nats."""
        return sum(self.log_p)

    @property
    def greedy(self) -> bool:
        """Whether the continuation is what always taking the likeliest token gives."""
        return all(self.likeliest)
