"""The loader: this rank's micro-batches of the next global batch, read ahead in threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.data.corpus import Batch, Corpus
from lit_gpt.data.cursor import Cursor
from lit_gpt.data.stream import DataError
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class StepData:
    """One optimizer step's data on one rank.

    micro_batches: Batches of (micro_batch, T).
    num_valid_global: targets that are not IGNORE over all ranks and micro-batches.
    samples_seen: the run's total after this step.
    """

    micro_batches: list[Batch]
    num_valid_global: int
    samples_seen: int

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches this rank has in the step."""
        return len(self.micro_batches)


class Loader:
    """Deals a corpus out to ranks. The order depends on the corpus alone.

    Rank r takes the r-th contiguous slice of every global batch, so a batch holds the same samples on any number of
    ranks (departure D68). With num_workers > 0 that many threads read ahead by one step; they guess that it is as
    large as the last one, and what they read is dropped where it is not (a batch that ramps up).
    state: a state() to go on from, of any number of ranks and any micro-batch.
    vocab_size: of the model; batches with a larger token id raise DataError.
    """

    def __init__(
        self,
        corpus: Corpus,
        rank: int,
        world_size: int,
        micro_batch: int,
        num_workers: int,
        state: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
    ):
        assert 0 <= rank < world_size
        self.corpus, self.rank, self.world_size, self.micro_batch = corpus, rank, world_size, micro_batch
        self.vocab_size = vocab_size
        known = corpus.fingerprint, corpus.content
        self.cursor = Cursor(*known) if state is None else Cursor.restore(state, *known)
        self._pool = ThreadPoolExecutor(num_workers, "loader") if num_workers else None
        self._ahead: dict[tuple[int, int], list[Future[Batch]]] = {}  # (start, num_samples) -> its batches

    def next_step(self, num_samples: int) -> StepData:
        """The next global batch of num_samples sequences, a multiple of world_size * micro_batch, all of it read.

        Raises UserError when the whole corpus holds fewer tokens than this one step, and DataError, with
        the cursor where it was, when the data cannot be used.
        """
        assert num_samples > 0 and num_samples % (self.world_size * self.micro_batch) == 0
        self.check_size(num_samples)
        start = self.cursor.samples_seen
        micro_batches = self._take(start, num_samples)
        self.cursor.samples_seen += num_samples
        return StepData(micro_batches, self.corpus.num_valid(start, num_samples), self.cursor.samples_seen)

    def state(self) -> dict[str, Any]:
        """The data state after the steps handed out so far; what is read ahead does not count.

        The cursor's state, and for forks, where that is in each source: see Corpus.place.
        """
        return {**self.cursor.state(), **self.corpus.place(self.cursor.samples_seen)}

    def close(self) -> None:
        """Stop the threads that read ahead."""
        self._drop_ahead()
        if self._pool:
            self._pool.shutdown(wait=True)

    def check_size(self, num_samples: int) -> None:
        """Raise UserError when the whole corpus holds fewer tokens than one step of num_samples sequences."""
        needed = num_samples * self.corpus.block + 1
        if self.corpus.repeat and self.corpus.num_tokens < needed:
            raise UserError(
                f"Not enough data: {self.corpus.num_tokens:,} tokens found, one step needs {needed:,} "
                f"({num_samples} sequences of {self.corpus.block}). Use more data or a smaller global batch."
            )

    def _starts(self, start: int, num_samples: int) -> range:
        mine = num_samples // self.world_size
        first = start + self.rank * mine
        return range(first, first + mine, self.micro_batch)

    def _submit(self, start: int, num_samples: int) -> list[Future[Batch]]:
        assert self._pool
        return [self._pool.submit(self._read, first) for first in self._starts(start, num_samples)]

    def _take(self, start: int, num_samples: int) -> list[Batch]:
        if not self._pool:
            return [self._read(first) for first in self._starts(start, num_samples)]
        futures = self._ahead.pop((start, num_samples), None)
        if futures is None:
            self._drop_ahead()
            futures = self._submit(start, num_samples)
        self._ahead = {(start + num_samples, num_samples): self._submit(start + num_samples, num_samples)}
        return [future.result() for future in futures]

    def _drop_ahead(self) -> None:
        for futures in self._ahead.values():
            for future in futures:
                future.cancel()
        self._ahead = {}

    def _read(self, first: int) -> Batch:
        batch = self.corpus.batch(first, self.micro_batch)
        largest = max(batch.tokens.max(), batch.targets.max())
        if self.vocab_size is not None and largest >= self.vocab_size:
            row = int(np.maximum(batch.tokens, batch.targets).max(1).argmax())
            raise DataError(
                f"The data holds the token id {largest} after {self.corpus.where(first + row)}; ids must be below the "
                f"vocabulary size {self.vocab_size}. The file is corrupt or was made with another tokenizer."
            )
        return batch
