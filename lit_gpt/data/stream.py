"""One contiguous stream of tokens: the protocol every file format is read through."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class StreamInfo:
    """What is known about a stream besides its tokens; None where nothing says.

    split: "train" or "validation"; only the text format, which has no split in its file names, needs it.
    tokenizer: a tokenizer spec (see tokenizer.py); only the text format needs it.
    bytes_per_token: UTF-8 bytes of source text per token, for bits per byte.
    """

    split: str = "train"
    eos_id: int | None = None
    vocab_size: int | None = None
    bytes_per_token: float | None = None
    tokenizer: str = "bytes"


class TokenStream(Protocol):
    """Many files seen as one read-only array of `num_tokens` token ids."""

    num_tokens: int
    eos_id: int | None
    vocab_size: int | None
    bytes_per_token: float | None
    fingerprint: str

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,). The range must lie inside the stream."""
        ...


@dataclass(frozen=True)
class Segment:
    """`count` tokens of `dtype` that start `offset` bytes into a file."""

    path: Path
    offset: int
    dtype: np.dtype
    count: int


def fingerprint(*parts: object) -> str:
    """A short stable hash of the parts' text."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=12).hexdigest()


class FileStream:
    """A stream over file segments, in the order given, memory-mapped one by one on first use.

    Every segment has its own dtype and length. The fingerprint covers names, sizes
    and layout and not the folder, so a data set may be moved.
    """

    def __init__(self, segments: Sequence[Segment], info: StreamInfo):
        self.segments = [s for s in segments if s.count]
        self.ends = list(accumulate(s.count for s in self.segments))
        self.num_tokens = self.ends[-1] if self.ends else 0
        self.eos_id, self.vocab_size = info.eos_id, info.vocab_size
        self.bytes_per_token = info.bytes_per_token
        self.fingerprint = fingerprint(*((s.path.name, s.offset, s.dtype.str, s.count) for s in self.segments))
        self._maps: dict[int, np.ndarray] = {}

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            s = self.segments[index]
            try:
                self._maps[index] = np.memmap(s.path, s.dtype, "r", s.offset, (s.count,))
            except (OSError, ValueError) as e:
                raise UserError(f"Cannot read the data file {s.path}: {e}.") from e
        return self._maps[index]

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,); the range may span files."""
        assert start >= 0 and start + length <= self.num_tokens, (start, length, self.num_tokens)
        out = np.empty(length, np.int64)
        done = 0
        while done < length:
            index = bisect_right(self.ends, start + done)
            within = start + done - (self.ends[index] - self.segments[index].count)
            piece = self._map(index)[within : within + length - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out


class ArrayStream:
    """A stream over an array in memory."""

    def __init__(self, tokens: np.ndarray, info: StreamInfo | None = None):
        info = info or StreamInfo()
        self.tokens, self.num_tokens = tokens, len(tokens)
        self.eos_id, self.vocab_size = info.eos_id, info.vocab_size
        self.bytes_per_token = info.bytes_per_token
        digest = hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=12).hexdigest()
        self.fingerprint = fingerprint("array", tokens.dtype.str, len(tokens), digest)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,)."""
        assert start >= 0 and start + length <= self.num_tokens, (start, length, self.num_tokens)
        return self.tokens[start : start + length].astype(np.int64)
