"""Mixtures and curricula: which source the i-th sample comes from, as a pure function of (seed, i)."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_gpt.config.bounds import shown
from lit_gpt.config.words import read_tokens
from lit_gpt.data.permutation import Permutation
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Phase
from lit_gpt.utils.files import regular

BITS = 62  # shares are exact fractions of 2**62, so that counts are exact integers at any index
ONE = 1 << BITS
LARGEST = 1e100  # a weight; far below the largest float, 1.8e308, so that no sum of weights is infinite
LATEST = 10**16  # tokens, where a phase may end; no --max_tokens is larger


def load_mixture(path: str | Path) -> list[Phase]:
    """The phases of a JSON file: the only one of an object {path prefix relative to the data folder: weight}, or those
    of a list of {"until": tokens, "weights": such an object}. Zero weights are left out.

    Raises UserError for weights that are not from 0 to LARGEST with a positive sum, and for ends that do not rise.
    """
    try:
        given = json.loads(
            regular(Path(path), EXAMPLE).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_name_twice
        )
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"Cannot read the mixture {str(path)!r}: {e}. {EXAMPLE}") from e
    mixture = f"mixture {str(path)!r}"
    if isinstance(given, dict):
        return [Phase(from_tokens=0, weights=_weights(given, f"The {mixture}"))]
    if not isinstance(given, list) or not given:
        raise UserError(f"The {mixture} is neither a JSON object nor a list of phases. {EXAMPLE}")
    return _phases(given, mixture)


def _phases(given: list[Any], mixture: str) -> list[Phase]:
    phases, start = list[Phase](), 0
    for n, phase in enumerate(given, 1):
        where, keys = f"Phase {n} of the {mixture}", ["weights"] if n == len(given) else ["until", "weights"]
        if not isinstance(phase, dict) or not isinstance(phase.get("weights", {}), dict):
            raise UserError(f"{where} is not a JSON object with an object of weights. {CURRICULUM}")
        if sorted(phase) != keys:
            raise UserError(
                f"{where} has the keys {shown(sorted(phase))}; it must have {' and '.join(keys)}, since every phase "
                f"but the last has an end. {CURRICULUM}"
            )
        phases.append(Phase(from_tokens=start, weights=_weights(phase["weights"], where)))
        start = _end(phase["until"], start, where) if "until" in phase else start
    return phases


def _end(given: object, start: int, where: str) -> int:
    """Where a phase that begins at `start` tokens ends."""
    try:
        end = read_tokens(given)
    except (ValueError, OverflowError):
        end = math.nan
    if not start + 1 <= end <= LATEST:
        raise UserError(
            f"{where} begins at {start:,} tokens and has the end {shown(given)}; an end is a number of tokens, such as "
            f"500M or 10B, above the beginning and at most {LATEST:,}."
        )
    return int(end)


def _weights(given: dict[str, Any], where: str) -> dict[str, float]:
    for name, weight in given.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= LARGEST:
            raise UserError(
                f"{where} gives {name!r} the weight {shown(weight)}; a weight is a number from 0 to {LARGEST:g}."
            )
    positive = {name: float(weight) for name, weight in given.items() if weight > 0}
    if not positive:
        raise UserError(f"{where} has no source with a positive weight. {EXAMPLE}")
    return positive


def source_names(phases: Sequence[Phase]) -> list[str]:
    """The sources of all phases, in the order in which they are first named."""
    return list(dict.fromkeys(name for phase in phases for name in phase["weights"]))


def first_sample(from_tokens: int, block: int) -> int:
    """The first sample of a phase: samples are of `block` tokens, and belong to the phase that they start in."""
    return -(-from_tokens // block)


def shifted(phases: Sequence[Phase], tokens: int) -> list[Phase]:
    """The phases as seen by an order of samples that begins after `tokens` tokens."""
    ends = [*(phase["from_tokens"] for phase in phases[1:]), math.inf]
    left = [phase for phase, end in zip(phases, ends) if end > tokens]
    return [Phase(from_tokens=max(p["from_tokens"] - tokens, 0), weights=p["weights"]) for p in left]


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is named twice")
    return dict(pairs)


EXAMPLE = 'A mixture is a JSON file such as {"web/train": 0.7, "code/train": 0.3}.'
CURRICULUM = (
    'A curriculum is a JSON file such as [{"until": "10B", "weights": {"web/train": 1}}, {"weights": {"code": 1}}].'
)


@dataclass(frozen=True)
class _Split:
    """A node of the tree: `share` / 2**62 of the samples that reach it go left, the others right.

    phase: from 0 to 2**62 - 1, shifts which ones. left, right: another node, or the number of a source.
    """

    share: int
    phase: int
    left: _Split | int
    right: _Split | int

    def before(self, i: int) -> int:
        """How many of the first i samples went left."""
        return (i * self.share + self.phase) >> BITS


class Interleave:
    """Deals the samples 0, 1, 2, ... to sources in exact proportion to their weights.

    A binary tree of two-way splits. A split sends sample i left when the integer part of
    i * share + phase steps up (a Beatty sequence with a phase drawn from the seed), so the
    number that went left before i, which is the sample's number on its new branch, is one
    multiplication. Hence both the source and the sample's number within the source are exact in
    O(log sources), each source counts 0, 1, 2, ... without a gap, and after any i samples a source
    with weight w has received i * w of them to within the depth of the tree. ArchScale draws
    sources at random, which has the same proportions in the limit only (departure D67).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        assert weights and all(w > 0 for w in weights)
        self.num_sources = len(weights)
        self.root = self._build(list(weights), 0, seed)

    def _build(self, weights: list[float], first: int, seed: int) -> _Split | int:
        if len(weights) == 1:
            return first
        half = len(weights) // 2
        fraction = math.fsum(weights[:half]) / math.fsum(weights)
        share = min(max(round(fraction * ONE), 1), ONE - 1)  # neither side is empty, however small its weight
        # Drawn for each node, so that the nodes of a tree do not all step at the same samples.
        phase = Permutation(ONE, f"{seed}/mixture/{first}/{len(weights)}")(0)
        left = self._build(weights[:half], first, seed)
        right = self._build(weights[half:], first + half, seed)
        return _Split(share, phase, left, right)

    def locate(self, i: int) -> tuple[int, int]:
        """(source, number of the sample within the source) of global sample i."""
        node = self.root
        while isinstance(node, _Split):
            before = node.before(i)
            if node.before(i + 1) > before:
                i, node = before, node.left
            else:
                i, node = i - before, node.right
        return node, i

    def counts(self, i: int) -> list[int]:
        """How many of the first i global samples each source receives; they sum to i."""
        out = [0] * self.num_sources

        def visit(node: _Split | int, n: int) -> None:
            if isinstance(node, _Split):
                visit(node.left, node.before(n))
                visit(node.right, n - node.before(n))
            else:
                out[node] = n

        visit(self.root, i)
        return out


class Curriculum:
    """Deals the samples 0, 1, 2, ... to sources, in other proportions in each phase.

    phases: the first sample of each, rising from 0, and the weight of every source in it, 0 for none. served: how many
    samples each source had served before; the next ones of a source have the numbers after these.

    Each phase has an Interleave over the sources that have a weight in it. How many samples a source serves in a whole
    phase is known without going through it, so a sample's number is that within the phase plus those of the phases
    before: exact, in O(log phases + log sources), and every source counts on without a gap or a repetition.
    """

    def __init__(self, phases: Sequence[tuple[int, Sequence[float]]], seed: int, served: Sequence[int]):
        self.firsts = [first for first, _ in phases]
        assert self.firsts[0] == 0 and self.firsts == sorted(self.firsts)
        self.sources = [[source for source, w in enumerate(weights) if w > 0] for _, weights in phases]
        self.deals = [Interleave([w for w in weights if w > 0], seed) for _, weights in phases]
        self.served = [list(served)]  # before each phase
        for phase, (first, end) in enumerate(pairwise(self.firsts)):
            self.served.append(self._counts(phase, end - first))

    def locate(self, i: int) -> tuple[int, int]:
        """(source, number of the sample within the source) of global sample i."""
        phase = bisect_right(self.firsts, i) - 1
        place, k = self.deals[phase].locate(i - self.firsts[phase])
        source = self.sources[phase][place]
        return source, self.served[phase][source] + k

    def counts(self, i: int) -> list[int]:
        """How many samples each source has served when the first i global samples are dealt."""
        phase = bisect_right(self.firsts, i) - 1
        return self._counts(phase, i - self.firsts[phase])

    def _counts(self, phase: int, i: int) -> list[int]:
        counts = list(self.served[phase])
        for source, count in zip(self.sources[phase], self.deals[phase].counts(i)):
            counts[source] += count
        return counts
