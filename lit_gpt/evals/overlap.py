"""How much of an evaluation a model has seen in training: the n-grams of tokens that both have.

Exact: every n-gram of the training data is looked up by a 64-bit hash, and what has the hash of an n-gram of the
examples is compared with it token by token. The training data is read once, in chunks; memory is that of the examples,
about 50 bytes for each of their tokens. An n-gram of the training data may reach over the end of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from lit_gpt.data.discover import open_corpus
from lit_gpt.data.kept_tokenizer import describe_tokenizer
from lit_gpt.data.stream import TokenStream
from lit_gpt.data.tokenizer import Tokenizer

NGRAM = 13  # the convention of GPT-3's paper, which counts words (arXiv:2005.14165, appendix C); here they are tokens
PROBE = "In 1998, 23 of them said: it isn't (quite) so simple.\n"  # two tokenizers do not cut all of this alike
CHUNK = 1 << 20  # tokens of training data read at a time: a few tens of MB with its hashes
FILTER_BITS = 24  # 16 MB, that say of most n-grams that no example has them


@dataclass(frozen=True)
class Overlap:
    """Of each example the share of its n-grams that occur in the training data; None where it is shorter than n.

    tokens: of the training data, that were read.
    """

    shares: list[float | None]
    n: int
    tokens: int

    @property
    def compared(self) -> list[float]:
        """The shares of the examples that have n tokens or more."""
        return [share for share in self.shares if share is not None]

    @property
    def contaminated(self) -> float | None:
        """The share of compared examples with one such n-gram or more, as GPT-3's paper counts; None without any."""
        found = self.compared
        return sum(share > 0 for share in found) / len(found) if found else None

    @property
    def mean(self) -> float | None:
        """The mean share of n-grams over the compared examples."""
        found = self.compared
        return sum(found) / len(found) if found else None


def streams_of(data_dir: str, split: str = "train", mixture: str | None = None) -> list[TokenStream]:
    """The token streams of a data folder, as training reads them. Raises UserError where there are none."""
    return [source.stream for source in open_corpus(data_dir, split, 1, 0, mixture).sources]


def other_tokenizer(data_dir: str, tokenizer: Tokenizer) -> str | None:
    """The name of the tokenizer that a data folder was made with where it is another one; None as far as is known."""
    kept = describe_tokenizer(data_dir)
    return kept.name if kept and kept.present and not alike(kept.load(), tokenizer) else None


def alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same tokens, as far as a sentence shows."""
    return one.encode(PROBE) == other.encode(PROBE)


def overlap(
    examples: Sequence[Sequence[int] | np.ndarray],
    streams: Sequence[TokenStream],
    n: int = NGRAM,
    *,
    chunk: int = CHUNK,
    show: bool = False,
) -> Overlap:
    """Look for the n-grams of examples (token ids each) in all training data. show: a bar of progress."""
    assert n >= 1 and chunk >= 1, (n, chunk)
    arrays = [np.asarray(example, np.int64) for example in examples]
    grams = _Grams([array for array in arrays if len(array) >= n], n)
    total = sum(stream.num_tokens for stream in streams)
    with tqdm(total=total, desc="reading the training data", unit="tok", unit_scale=True, disable=not show) as bar:
        for stream in streams:
            for start in range(0, stream.num_tokens, chunk):
                length = min(chunk, stream.num_tokens - start)
                grams.look(stream.read(start, min(length + n - 1, stream.num_tokens - start)))
                bar.update(length)
    shares = iter(grams.shares())
    return Overlap([next(shares) if len(array) >= n else None for array in arrays], n, total)


class _Grams:
    """The n-grams of examples, each found or not."""

    def __init__(self, examples: Sequence[np.ndarray], n: int):
        self.n, self.counts = n, [len(example) - n + 1 for example in examples]
        self.tokens = np.concatenate([*examples, np.empty(0, np.int64)])
        begins = np.cumsum([0, *map(len, examples)])
        places = [np.arange(begin, begin + count) for begin, count in zip(begins, self.counts)]
        self.places = np.concatenate([*places, np.empty(0, np.int64)])  # where each n-gram starts, over all examples
        for seed in range(100):  # two n-grams with one hash would be taken for one: another hash then
            self.factors = np.random.default_rng(seed).integers(1 << 63, size=n, dtype=np.uint64) * 2 + 1
            self.hashes, first, self.which = np.unique(self._hash(self.tokens, self.places), True, True)
            self.first = self.places[first]  # where each different n-gram is
            if self._same(self.tokens, self.places, self.first[self.which]).all():
                break
        else:
            raise AssertionError("a hundred hashes of 64 bits all had collisions")
        self.found = np.zeros(len(self.hashes), bool)
        self.filter = np.zeros(1 << FILTER_BITS, bool)
        self.filter[self._short(self.hashes)] = True

    def look(self, tokens: np.ndarray) -> None:
        """Mark the n-grams that are in these tokens of the training data, (T,)."""
        if len(tokens) < self.n or not len(self.hashes):
            return
        hashes = self._hash(tokens, None)
        places = np.flatnonzero(self.filter[self._short(hashes)])
        found = np.searchsorted(self.hashes, hashes[places])
        found[found == len(self.hashes)] = 0
        known = (self.hashes[found] == hashes[places]) & ~self.found[found]
        places, found = places[known], found[known]
        self.found[found[self._same(tokens, places, self.first[found])]] = True

    def shares(self) -> list[float]:
        """Of each example, the share of its n-grams that were found."""
        seen, ends = self.found[self.which], np.cumsum(self.counts)
        return [float(seen[end - count : end].mean()) for end, count in zip(ends, self.counts)]

    def _hash(self, tokens: np.ndarray, places: np.ndarray | None) -> np.ndarray:
        """Of the n-grams at these places, of all when None: the sum of tokens times odd random numbers, modulo 2^64."""
        ids, count = tokens.astype(np.uint64), max(0, len(tokens) - self.n + 1)
        total = np.zeros(count, np.uint64)
        for i, factor in enumerate(self.factors):
            total += ids[i : i + count] * factor
        return total if places is None else total[places]

    def _same(self, tokens: np.ndarray, places: np.ndarray, ours: np.ndarray) -> np.ndarray:
        """Whether the n-grams at `places` of `tokens` are those at `ours` of the examples, one by one."""
        if not len(places):
            return np.zeros(0, bool)
        same = np.ones(len(places), bool)
        for i in range(self.n):
            same &= tokens[places + i] == self.tokens[ours + i]
        return same

    @staticmethod
    def _short(hashes: np.ndarray) -> np.ndarray:
        """The upper bits, which all tokens have a part in."""
        return hashes >> np.uint64(64 - FILTER_BITS)
