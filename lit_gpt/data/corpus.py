"""The corpus: global sample index -> tokens, a pure function of (seed, mixture, index).

A source's stream is cut into windows of block + 1 tokens that start every `block` tokens, so
neighbours share one token and every token of the source but its first is a target exactly
once per epoch. (ArchScale cuts disjoint blocks of block + 1 tokens, never predicts the first
token of a block, and drops what is left at the end of every file: departure D64.) The last
window is usually short and is padded with IGNORE. Each epoch visits the windows in a new order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from lit_gpt.config.model import IGNORE
from lit_gpt.data.mixture import Curriculum, first_sample
from lit_gpt.data.origin import agree
from lit_gpt.data.permutation import Permutation
from lit_gpt.data.stream import DataError, TokenStream, fingerprint
from lit_gpt.data.token_bytes import TokenBytes, token_bytes
from lit_gpt.errors import UserError

# Part of the fingerprint, so that a checkpoint does not go on in another order of samples. Raise it when the order
# changes for the same inputs.
ORDER_VERSION = 1


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch. tokens, targets: int64 (B, T).

    targets[b, t] is the token after tokens[b, t], IGNORE where there is none; behind the end of a
    short window tokens hold EOS (0 when the EOS is unknown). first: number of the first sample, in the run's order.
    """

    tokens: np.ndarray
    targets: np.ndarray
    first: int = 0


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
        # Of the newest epochs: threads that read ahead and the step itself may be on two sides of the end of one.
        make = lru_cache(4)(lambda epoch: Permutation(self.num_windows, f"{seed}/{name}/{epoch}"))
        self.order = make if shuffle else None

    def start(self, k: int) -> int:
        """Which token of the stream the k-th window starts at."""
        epoch, place = divmod(k, self.num_windows)
        return (self.order(epoch)(place) if self.order else place) * self.block

    def window(self, k: int) -> np.ndarray:
        """The k-th window this source serves: int64 (block + 1,), padded with IGNORE."""
        out = np.full(self.block + 1, IGNORE, np.int64)
        if k < self.num_windows or self.repeat:
            start = self.start(k)
            length = min(self.block + 1, self.stream.num_tokens - start)
            out[:length] = self.stream.read(start, length)
        return out

    def check(self, k: int, window: np.ndarray) -> None:
        """Raise DataError when the k-th window holds an id below 0 that is not its padding."""
        length = min(self.block + 1, self.stream.num_tokens - self.start(k))
        if (k < self.num_windows or self.repeat) and window[:length].min() < 0:
            raise DataError(
                f"The data holds the token id {window[:length].min()} after {self.stream.place(self.start(k))}; ids "
                "must be at least 0. The file is corrupt, or holds ids of another type."
            )

    def targets_before(self, k: int) -> int:
        """Targets in the first k windows served, without reading any."""
        if not self.repeat:
            k = min(k, self.num_windows)
        epoch, place = divmod(k, self.num_windows)
        # All windows have `block` targets but the stream's last one, which every epoch visits once, in its own place.
        last = self.num_windows - 1
        where = self.order(epoch).inverse(last) if self.order else last
        short_windows = epoch + (where < place)
        return k * self.block - short_windows * (self.block - self.last_targets)


class Corpus:
    """Weighted token streams as one endless, seekable sequence of samples.

    sources: (name, stream, weight); names key the shuffle, weights need not sum to 1. In a curriculum a source has a
    weight for every phase.
    block: targets per sample (the context length T).
    shuffle: visit each epoch's windows in a pseudo-random order; else in stream order.
    repeat: start another epoch when a source is used up; else serve windows of nothing but IGNORE.
    starts: tokens from which the phases of a curriculum are on, the first one 0.
    offsets: windows of each source, by name, that were seen before sample 0; none where not named, and names of other
    sources do not count. A source goes on behind them, epochs included.

    num_tokens: tokens in all sources. num_samples: windows in one epoch of all sources.
    fingerprint: of the order of samples and of the files' names, sizes and layout. content: of the ids,
    of all of small data and of samples of large. eos_id, vocab_size: from the data's side files, None where unknown.
    Raises UserError when a source is shorter than one sample or sources disagree on tokenizer, EOS or vocabulary.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, TokenStream, float | Sequence[float]]],
        block: int,
        seed: int,
        shuffle: bool = True,
        repeat: bool = True,
        starts: Sequence[int] = (0,),
        offsets: Mapping[str, int] | None = None,
    ):
        self.sources = [Source(name, stream, block, seed, shuffle, repeat) for name, stream, _ in sources]
        streams, seen = [s for _, s, _ in sources], offsets or {}
        weights = [tuple(map(float, w)) if isinstance(w, Sequence) else (float(w),) for _, _, w in sources]
        assert min(seen.values(), default=0) >= 0
        assert {len(w) for w in weights} == {len(starts)}
        served = [seen.get(s.name, 0) for s in self.sources]
        firsts = (first_sample(start, block) for start in starts)
        self.interleave = Curriculum(list(zip(firsts, zip(*weights))), seed, served)
        self.block, self.seed, self.repeat = block, seed, repeat
        self.num_tokens = sum(s.num_tokens for s in streams)
        self.num_samples = sum(s.num_windows for s in self.sources)
        self.common = agree([(s.name, s.stream.info) for s in self.sources])
        self.eos_id, self.vocab_size = self.common.eos_id, self.common.vocab_size
        later = [("starts", *starts)] if len(starts) > 1 else []
        later += [("offsets", *served)] if any(served) else []  # neither is part of what has neither
        described = [(s.name, s.stream.fingerprint, *w) for s, w in zip(self.sources, weights)]
        self.fingerprint = fingerprint(ORDER_VERSION, block, seed, shuffle, repeat, *described, *later)

    @cached_property
    def content(self) -> str:
        """Reads the data, once, as far as there is time for it."""
        return fingerprint(*(source.stream.look.content for source in self.sources))

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """Bytes of text per token id, None where they cannot be known."""
        return token_bytes(self.common)

    def sample(self, index: int) -> np.ndarray:
        """Global sample `index`: int64 (block + 1,), padded past the end of the stream with IGNORE."""
        source, k = self.interleave.locate(index)
        return self.sources[source].window(k)

    def batch(self, start: int, count: int) -> Batch:
        """Global samples [start, start + count) as tokens and targets, each (count, block).

        Raises DataError for ids below 0 and for data that cannot be read any more.
        """
        rows = np.stack([self.sample(i) for i in range(start, start + count)])
        tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
        if rows.min() < 0:  # padding, or an id that may look like it
            for i, row in enumerate(rows, start):
                source, k = self.interleave.locate(i)
                self.sources[source].check(k, row)
            tokens[tokens == IGNORE] = self.eos_id or 0
        return Batch(tokens, targets, start)

    def where(self, index: int) -> str:
        """Where the tokens of global sample `index` are, for a person."""
        source, k = self.interleave.locate(index)
        return self.sources[source].stream.place(self.sources[source].start(k))

    def num_valid(self, start: int, count: int) -> int:
        """Targets that are not IGNORE in global samples [start, start + count), without reading any."""
        first, last = self.interleave.counts(start), self.interleave.counts(start + count)
        return sum(s.targets_before(b) - s.targets_before(a) for s, a, b in zip(self.sources, first, last))

    def epochs(self, samples_seen: int) -> dict[str, float]:
        """How many times each source has been gone through after that many samples."""
        counts = self.interleave.counts(samples_seen)
        return {s.name: n / s.num_windows for s, n in zip(self.sources, counts)}

    def most_passes(self, tokens: int) -> tuple[Source, float]:
        """The source that so many tokens go through most often, and how often."""
        counts = zip(self.sources, self.interleave.counts(tokens // self.block))
        passes = [(source, n * self.block / source.stream.num_tokens) for source, n in counts]
        return max(passes, key=lambda pair: pair[1])

    def place(self, samples_seen: int) -> dict[str, Any]:
        """Which windows of each source are seen after that many samples: JSON values, for `offsets_from`."""
        counts = zip(self.sources, self.interleave.counts(samples_seen))
        sources = {s.name: {"stream": s.stream.fingerprint, "windows": n} for s, n in counts}
        return {"block": self.block, "seed": self.seed, "sources": sources}


def check_vocab(corpus: Corpus, vocab_size: int) -> None:
    """Raise UserError when token ids of the data, or what its meta.json says, do not fit `vocab_size` tokens.

    All ids of a small stream are looked at, samples of a large one (see stream.WHOLE); the Loader checks
    every batch as well.
    """
    for source in corpus.sources:
        name, info, seen = source.name, source.stream.info, source.stream.look
        if seen.low < 0:
            raise UserError(
                f"The data source {name!r} has token id {seen.low} ({seen.low_at}); ids must be at least 0. "
                "The file is corrupt, or holds ids of another type."
            )
        if info.guessed and vocab_size > 1 << 16:
            raise UserError(
                f"The files of the data source {name!r} have no header and were taken for uint16, which ends at "
                f"65,535, but the vocabulary has {vocab_size:,}. Put a meta.json beside them that names their type: "
                '{"dtype": "uint32"}, or "uint16" if it is that.'
            )
        if info.eos_id is not None and info.eos_id >= vocab_size:
            raise UserError(
                f"The data source {name!r} has the EOS id {info.eos_id}, as its meta.json says; it must be below the "
                f"vocabulary size {vocab_size}. Correct the meta.json, or set --eos_token_id."
            )
        told = (info.vocab_size or 0) - 1
        largest, where = max((seen.high, seen.high_at), (told, "as its meta.json says"))
        if largest >= vocab_size:
            raise UserError(
                f"The data source {name!r} has token id {largest}, the model's vocabulary has only {vocab_size} "
                f"entries (0 to {vocab_size - 1}; {where}). Set --vocab_size to at least {largest + 1}, or use "
                "data of the model's tokenizer."
            )
