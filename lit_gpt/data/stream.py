"""One contiguous stream of tokens: what every file format is read through."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError

# Data of up to so many tokens is read as a whole before a run, to find ids that do not fit and to hash the content. It
# takes a tenth of a second.
WHOLE = 1 << 24
# Of larger data, the start of every file and 256 evenly spaced stretches of 16,384 tokens are read.
PROBES, PROBE = 256, 1 << 14


class DataError(UserError):
    """Data that was fine when the run started cannot be used in the middle of it.

    Other than after a plain UserError, there is progress then, and the loop saves it.
    """


@dataclass(frozen=True)
class StreamInfo:
    """What is known about a stream besides its tokens; None where nothing says.

    split: "train" or "validation"; only the text format, which has no split in its file names, needs it.
    tokenizer: a tokenizer spec (see tokenizer.py); only the text format needs it.
    made_with: spec of the tokenizer that the ids come from.
    dtype: NumPy name of the type of ids in files without a header.
    guessed: such files were read as uint16 because nothing said what they hold.
    """

    split: str = "train"
    eos_id: int | None = None
    vocab_size: int | None = None
    tokenizer: str = "bytes"
    made_with: str | None = None
    dtype: str | None = None
    guessed: bool = False


@dataclass(frozen=True)
class Look:
    """What was seen of a stream before the run: all of it up to WHOLE tokens, else samples.

    low, high: smallest and largest token id. low_at, high_at: where they are, in words.
    content: hash of the ids.
    """

    low: int
    high: int
    low_at: str
    high_at: str
    content: str


class TokenStream(ABC):
    """Many files seen as one read-only array of `num_tokens` token ids.

    fingerprint: of names, sizes and layout. ends: number of tokens up to the end of every file.
    """

    info: StreamInfo
    num_tokens: int
    fingerprint: str
    ends: Sequence[int]

    @property
    def eos_id(self) -> int | None:
        return self.info.eos_id

    @property
    def vocab_size(self) -> int | None:
        return self.info.vocab_size

    @abstractmethod
    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,). The range must lie inside the stream."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where token `index` is, for a person: file and place in it."""

    @cached_property
    def look(self) -> Look:
        """Read what there is time for. The stream must not be empty."""
        low = high = (0, 0)  # (id, index)
        digest = hashlib.blake2b(digest_size=12)
        for n, (start, ids) in enumerate(self._probes()):
            least, most = int(ids.argmin()), int(ids.argmax())
            low = min((int(ids[least]), start + least), low) if n else (int(ids[least]), start + least)
            high = max((int(ids[most]), start + most), high) if n else (int(ids[most]), start + most)
            digest.update(ids.tobytes())
        return Look(low[0], high[0], self.place(low[1]), self.place(high[1]), digest.hexdigest())

    def _probes(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first index, ids) of the stretches that are looked at, in order."""
        if self.num_tokens <= WHOLE:
            starts = set(range(0, self.num_tokens, PROBE))
        else:
            files = [0, *self.ends[:-1]]
            starts = {*files, *(i * (self.num_tokens - PROBE) // (PROBES - 1) for i in range(PROBES))}
        for start in sorted(starts):
            yield start, self.read(start, min(PROBE, self.num_tokens - start))


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


class _Handle:
    """An open file. It is closed when it has left the cache and no thread reads from it any more."""

    fd = -1

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that took its place must not hang

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@cache
def _handles() -> Callable[[str, int], _Handle]:
    """Opens files and keeps the latest: a quarter of what the process may open (1024 is common, 256 on macOS).

    Takes a path and the number of the stream, so that a stream made later sees a file that was replaced.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return lru_cache(limit // 4 if limit > 0 else 1 << 16)(lambda path, stream: _Handle(path))  # -1: no limit


_numbers = itertools.count()


class FileStream(TokenStream):
    """A stream over file segments, in the order given. Every segment has its own dtype and length.

    Files are read, not mapped: a mapping keeps a file handle each, and one of a file that is cut
    short later kills the process with SIGBUS. A read of one window takes as long (4 us for 2,049 tokens).
    The fingerprint does not cover the folder, so a data set may be moved.
    """

    def __init__(self, segments: Sequence[Segment], info: StreamInfo):
        self.info = info
        self.segments = [s for s in segments if s.count]
        self.ends = list(accumulate(s.count for s in self.segments))
        self.num_tokens = self.ends[-1] if self.ends else 0
        self.fingerprint = fingerprint(*((s.path.name, s.offset, s.dtype.str, s.count) for s in self.segments))
        self._paths = [str(s.path) for s in self.segments]  # far faster to look up than a Path
        self._number = next(_numbers)

    def place(self, index: int) -> str:
        """The file of token `index`, and its number in that file."""
        i = bisect_right(self.ends, index)
        return f"{self._paths[i]}, token {index - (self.ends[i] - self.segments[i].count):,}"

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,); the range may span files.

        Raises DataError for a file that cannot be read any more or has become shorter.
        """
        assert start >= 0 and start + length <= self.num_tokens, (start, length, self.num_tokens)
        out = np.empty(length, np.int64)
        done = 0
        while done < length:
            i = bisect_right(self.ends, start + done)
            left = self.ends[i] - (start + done)
            count = min(length - done, left)
            out[done : done + count] = self._read(i, self.segments[i].count - left, count)
            done += count
        return out

    def _read(self, index: int, first: int, count: int) -> np.ndarray:
        """`count` ids from number `first` of one segment on."""
        segment, width = self.segments[index], self.segments[index].dtype.itemsize
        size, offset = count * width, segment.offset + first * width
        try:
            handle = _handles()(self._paths[index], self._number)
            raw = os.pread(handle.fd, size, offset)
            while len(raw) < size and (more := os.pread(handle.fd, size - len(raw), offset + len(raw))):
                raw += more  # network file systems may return less than was asked for
        except OSError as e:
            raise DataError(f"Cannot read the data file {segment.path}: {e.strerror}.") from e
        if len(raw) < size:
            end = segment.offset + segment.count * width
            raise DataError(
                f"The data file {segment.path} was cut short after the run had opened it: it has "
                f"{os.fstat(handle.fd).st_size:,} bytes, its tokens take {end:,}. Put the whole file back."
            )
        return np.frombuffer(raw, segment.dtype)


class ArrayStream(TokenStream):
    """A stream over an array in memory."""

    def __init__(self, tokens: np.ndarray, info: StreamInfo | None = None):
        self.info = info or StreamInfo()
        self.tokens, self.num_tokens, self.ends = tokens, len(tokens), [len(tokens)]
        digest = hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=12).hexdigest()
        self.fingerprint = fingerprint("array", tokens.dtype.str, len(tokens), digest)

    def place(self, index: int) -> str:
        """The number of the token, since there is no file."""
        return f"token {index:,}"

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64 (length,)."""
        assert start >= 0 and start + length <= self.num_tokens, (start, length, self.num_tokens)
        return self.tokens[start : start + length].astype(np.int64)
