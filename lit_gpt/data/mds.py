"""MDS shards, the files of MosaicML's streaming library: the arrays of their samples.

    offset 0              uint32             number of samples, n
    offset 4              uint32[n + 1]      where each sample begins, and where the last one ends
    offset 8 + 4n         JSON               column_names, column_encodings, column_sizes
    at these offsets      n samples          uint32 sizes of the columns without a fixed size, then the columns' bytes

All little-endian. Source: mosaicml/streaming, base/format/mds (version 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_gpt.data.codec import Unusable, compression_of, damage_as_unusable, opened

# The type byte of an array whose encoding names none.
DTYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4", 33: "<i4", 34: "<f4"}
DTYPES |= {64: "<u8", 65: "<i8", 66: "<f8"}


def arrays(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """{column: array} of every sample of a shard, compressed or not; columns of other types are passed over.

    Raises Unusable for a file that is no MDS shard, or a damaged one.
    """
    with damage_as_unusable(), open(path, "rb") as raw, opened(raw, compression_of(raw.peek(8))) as f:
        data = f.read()
    try:
        count = int(np.frombuffer(data, "<u4", 1)[0])
        bounds = np.frombuffer(data, "<u4", count + 1, offset=4).tolist()
        header = json.loads(data[8 + 4 * count : bounds[0]])
        columns = list(zip(header["column_names"], header["column_encodings"], header["column_sizes"]))
        if bounds[-1] != len(data):
            raise ValueError(f"{len(data):,} bytes of {bounds[-1]:,}")
        for start, end in pairwise(bounds):
            yield _sample(data[start:end], columns)
    except (ValueError, LookupError, TypeError) as e:
        raise Unusable(f"no MDS shard, or a damaged one ({e})") from e


def _sample(data: bytes, columns: list[tuple[str, str, int | None]]) -> dict[str, np.ndarray]:
    open_sizes = sum(size is None for _, _, size in columns)
    sizes, at, found = iter(np.frombuffer(data, "<u4", open_sizes).tolist()), 4 * open_sizes, {}
    for name, encoding, fixed in columns:
        size = next(sizes) if fixed is None else fixed
        if encoding.split(":")[0] == "ndarray":
            found[name] = _array(data[at : at + size], *encoding.split(":")[1:])
        at += size
    return found


def _array(data: bytes, dtype: str = "", shape: str = "") -> np.ndarray:
    """The array of bytes that begin with its type and its shape, where these are not given."""
    at = 0 if dtype else 1
    read_as = np.dtype(dtype or DTYPES[data[0]]).newbyteorder("<")
    if shape:
        sides = [int(side) for side in shape.split(",")]
    else:  # a byte: the number of axes, times 4, and the size of the numbers that say how long they are
        axes, width = data[at] >> 2, 1 << (data[at] & 3)
        sides = np.frombuffer(data, f"<u{width}", axes, offset=at + 1).tolist()
        at += 1 + axes * width
    return np.frombuffer(data, read_as, offset=at).reshape(sides)
