"""The corpus: global sample index -> tokens, a pure function of (seed, mixture, index).

A source's stream is cut into windows of block + 1 tokens that start every `block` tokens, so
neighbours share one token and every token of the source but its first is a target exactly
once per epoch. (The reference cuts disjoint blocks of block + 1, never predicts the first
token of a block and drops what is left at the end of every file.) The last window is
usually short and is padded with IGNORE. Each epoch visits the windows in a new order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lit_gpt.data.mixture import Interleave
from lit_gpt.data.permutation import Permutation
from lit_gpt.data.stream import TokenStream, fingerprint
from lit_gpt.errors import UserError
from lit_gpt.ops.loss import IGNORE

ORDER_VERSION = 1  # raise it when the order of samples changes for the same inputs


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch. tokens, targets: int64 (B, T).

    targets[b, t] is the token after tokens[b, t], IGNORE where there is none; behind the end of a
    short window tokens hold EOS (0 when the EOS is unknown).
    """

    tokens: np.ndarray
    targets: np.ndarray


class Source:
    """One stream of the mixture, as an endless sequence of windows over epochs."""

    def __init__(self, name: str, stream: TokenStream, block: int, seed: int, shuffle: bool, repeat: bool):
        if stream.num_tokens < block + 1:
            raise UserError(
                f"The data source {name!r} is too small: {stream.num_tokens} tokens found, one sample needs "
                f"{block + 1}. Use more data or a shorter context."
            )
        self.name, self.stream, self.block, self.repeat = name, stream, block, repeat
        self.num_windows = -(-(stream.num_tokens - 1) // block)
        self.last_targets = stream.num_tokens - 1 - (self.num_windows - 1) * block
        make = lru_cache(4)(lambda epoch: Permutation(self.num_windows, f"{seed}/{name}/{epoch}"))
        self.order = make if shuffle else None

    def window(self, k: int) -> np.ndarray:
        """The k-th window this source serves: int64 (block + 1,), padded with IGNORE."""
        epoch, place = divmod(k, self.num_windows)
        out = np.full(self.block + 1, IGNORE, np.int64)
        if epoch == 0 or self.repeat:
            start = (self.order(epoch)(place) if self.order else place) * self.block
            length = min(self.block + 1, self.stream.num_tokens - start)
            out[:length] = self.stream.read(start, length)
        return out

    def targets_before(self, k: int) -> int:
        """Targets in the first k windows served, without reading any."""
        if not self.repeat:
            k = min(k, self.num_windows)
        epoch, place = divmod(k, self.num_windows)
        last = self.num_windows - 1
        where = self.order(epoch).inverse(last) if self.order else last
        short_windows = epoch + (where < place)
        return k * self.block - short_windows * (self.block - self.last_targets)


class Corpus:
    """Weighted token streams as one endless, seekable sequence of samples.

    sources: (name, stream, weight); names key the shuffle, weights need not sum to 1.
    block: targets per sample (the context length T).
    shuffle: visit each epoch's windows in a pseudo-random order; else in stream order.
    repeat: start another epoch when a source is used up; else serve windows of nothing but IGNORE.

    num_tokens: tokens in all sources. num_samples: windows in one epoch of all sources.
    fingerprint: equal for two corpora exactly when they serve the same samples in the same order.
    eos_id, vocab_size, bytes_per_token: from the data's side files, None where unknown.
    Raises UserError when a source is shorter than one sample or sources disagree on EOS or vocabulary.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, TokenStream, float]],
        block: int,
        seed: int,
        shuffle: bool = True,
        repeat: bool = True,
    ):
        self.sources = [Source(name, stream, block, seed, shuffle, repeat) for name, stream, _ in sources]
        streams, weights = [s for _, s, _ in sources], [w for _, _, w in sources]
        self.interleave = Interleave(weights, seed)
        self.block, self.repeat = block, repeat
        self.num_tokens = sum(s.num_tokens for s in streams)
        self.num_samples = sum(s.num_windows for s in self.sources)
        self.eos_id = _agreed("EOS id", [(s.name, s.stream.eos_id) for s in self.sources])
        self.vocab_size = _agreed("vocabulary size", [(s.name, s.stream.vocab_size) for s in self.sources])
        ratios = [s.bytes_per_token for s in streams]
        self.bytes_per_token = None
        if None not in ratios:
            self.bytes_per_token = float(np.average(np.array(ratios, float), weights=weights))
        described = [(name, stream.fingerprint, float(weight)) for name, stream, weight in sources]
        self.fingerprint = fingerprint(ORDER_VERSION, block, seed, shuffle, repeat, *described)

    def sample(self, index: int) -> np.ndarray:
        """Global sample `index`: int64 (block + 1,), padded past the end of the stream with IGNORE."""
        source, k = self.interleave.locate(index)
        return self.sources[source].window(k)

    def batch(self, start: int, count: int) -> Batch:
        """Global samples [start, start + count) as tokens and targets, each (count, block)."""
        rows = np.stack([self.sample(i) for i in range(start, start + count)])
        tokens = np.where(rows[:, :-1] == IGNORE, self.eos_id or 0, rows[:, :-1])
        return Batch(tokens, rows[:, 1:].copy())

    def num_valid(self, start: int, count: int) -> int:
        """Targets that are not IGNORE in global samples [start, start + count), without reading any."""
        first, last = self.interleave.counts(start), self.interleave.counts(start + count)
        return sum(s.targets_before(b) - s.targets_before(a) for s, a, b in zip(self.sources, first, last))

    def epochs(self, samples_seen: int) -> dict[str, float]:
        """How many times each source has been gone through after that many samples."""
        counts = self.interleave.counts(samples_seen)
        return {s.name: n / s.num_windows for s, n in zip(self.sources, counts)}


def _agreed(what: str, values: Sequence[tuple[str, int | None]]) -> int | None:
    known = {value for _, value in values if value is not None}
    if len(known) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in values)
        raise UserError(
            f"The data sources disagree on the {what} ({listed}). Sources of one mixture must be prepared "
            "with the same tokenizer."
        )
    return known.pop() if known else None


FULL_SCAN = 1 << 24  # tokens; up to here every token is looked at
PROBES, PROBE = 64, 1 << 16  # above: this many evenly spaced reads of this many tokens


def check_vocab(corpus: Corpus, vocab_size: int) -> None:
    """Raise UserError when a token id of the data does not fit a model of `vocab_size` tokens.

    Goes by the data's own metadata where there is some, else looks at the tokens: at all of a
    small stream, at 64 stretches of a large one (the Loader checks every batch as well).
    """
    for source in corpus.sources:
        stream = source.stream
        largest = stream.vocab_size - 1 if stream.vocab_size else _largest(stream)
        if largest >= vocab_size:
            raise UserError(
                f"The data source {source.name!r} has token id {largest}, the model's vocabulary has only "
                f"{vocab_size} entries (0 to {vocab_size - 1}). Set the vocabulary size to at least "
                f"{largest + 1}, or use data of the model's tokenizer."
            )


def _largest(stream: TokenStream) -> int:
    whole = stream.num_tokens <= FULL_SCAN
    step = PROBE if whole else (stream.num_tokens - PROBE) // (PROBES - 1)
    starts = range(0, stream.num_tokens if whole else step * PROBES, step)
    return max(int(stream.read(s, min(PROBE, stream.num_tokens - s)).max()) for s in starts)
