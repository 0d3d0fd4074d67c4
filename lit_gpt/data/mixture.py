"""Mixtures: which source the i-th sample comes from, as a pure function of (seed, i)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.config.bounds import shown
from lit_gpt.data.permutation import Permutation
from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular

BITS = 62  # shares are exact fractions of 2**62, so that counts are exact integers at any index
ONE = 1 << BITS
LARGEST = 1e100  # a weight; far below the largest float, 1.8e308, so that no sum of weights is infinite


def load_mixture(path: str | Path) -> dict[str, float]:
    """{path prefix relative to the data folder: weight} from a JSON file; zero weights are left out.

    Raises UserError for anything but an object of weights from 0 to LARGEST with a positive sum.
    """
    try:
        mixture = json.loads(regular(Path(path)).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_name_twice)
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"Cannot read the mixture {str(path)!r}: {e}. {EXAMPLE}") from e
    if not isinstance(mixture, dict):
        raise UserError(f"The mixture {str(path)!r} is not a JSON object. {EXAMPLE}")
    for name, weight in mixture.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= LARGEST:
            raise UserError(
                f"The mixture {str(path)!r} gives {name!r} the weight {shown(weight)}; a weight is a number "
                f"from 0 to {LARGEST:g}."
            )
    positive = {name: float(weight) for name, weight in mixture.items() if weight > 0}
    if not positive:
        raise UserError(f"The mixture {str(path)!r} has no source with a positive weight. {EXAMPLE}")
    return positive


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is named twice")
    return dict(pairs)


EXAMPLE = 'A mixture is a JSON file such as {"web/train": 0.7, "code/train": 0.3}.'


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
