"""Megatron-LM's indexed data set: tokens in X.bin, types and lengths in X.idx.

    X.idx: "MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 sequences S, uint64 documents D,
           int32 lengths (S,), int64 byte offsets (S,), int64 document starts (D,)

Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py. Its builder writes
the sequences back to back, which is what makes the .bin one stream.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.data.stream import FileStream, Segment, StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular

HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
# Megatron's codes; those of floats (6, 7) are no token ids.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def matches(path: Path) -> bool:
    """True for a .bin with an .idx beside it."""
    return path.suffix == ".bin" and path.with_suffix(".idx").exists()


def _segment(path: Path) -> Segment:
    index = path.with_suffix(".idx")
    raw = regular(index).read_bytes()
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise UserError(f"Corrupt Megatron index {index}: it does not start with {MAGIC!r}.")
    _, version, code, sequences, documents = HEADER.unpack_from(raw)
    whole = len(raw) == HEADER.size + 12 * sequences + 8 * documents
    if version != 1 or code not in DTYPES or not whole:
        raise UserError(
            f"Corrupt Megatron index {index}: version {version}, dtype code {code}, "
            f"{sequences} sequences in {len(raw)} bytes."
        )
    dtype = np.dtype(DTYPES[code])
    lengths = np.frombuffer(raw, "<i4", sequences, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(raw, "<i8", sequences, HEADER.size + 4 * sequences)
    count, size = int(lengths.sum()), path.stat().st_size
    ends = np.cumsum(lengths) * dtype.itemsize
    together = np.array_equal(offsets, ends - lengths * dtype.itemsize) and (lengths >= 0).all()
    if size != count * dtype.itemsize or not together:
        raise UserError(
            f"{path} has {size} bytes and its index describes {count} tokens of {dtype.itemsize} bytes, back "
            "to back. One of the two files is corrupt, or they do not belong together."
        )
    return Segment(path, 0, dtype, count)


def open_stream(paths: Sequence[Path], info: StreamInfo) -> FileStream:
    """All .bin files as one stream. Raises UserError when an index and its .bin disagree."""
    return FileStream([_segment(path) for path in paths], info)
