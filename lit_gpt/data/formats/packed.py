"""Packed shards (LITPKDS): ArchScale's format, byte for byte.

    offset 0   7 bytes  ASCII "LITPKDS"
    offset 7   uint64   version, 1
    offset 15  uint8    dtype code, see DTYPES
    offset 16  uint64   number of tokens in this file
    offset 24  tokens   no index, no checksum

All little-endian. Every file is read with its own dtype and size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.data.stream import FileStream, Segment, StreamInfo
from lit_gpt.errors import UserError

MAGIC = b"LITPKDS"
VERSION = 1
HEADER = struct.Struct("<7sQBQ")
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2"}
UINT16_VOCAB = 65500  # ArchScale's limit for uint16, below the possible 65,536; kept so that its files and ours agree


def matches(path: Path) -> bool:
    """True when the file starts with the magic bytes."""
    with open(path, "rb") as f:
        return f.read(len(MAGIC)) == MAGIC


def dtype_for(vocab_size: int) -> np.dtype:
    """uint16 for vocabularies under 65500, else int32."""
    return np.dtype("<u2" if vocab_size < UINT16_VOCAB else "<i4")


def header(dtype: np.dtype, count: int) -> bytes:
    """The 24 bytes in front of `count` tokens of `dtype`."""
    code = next(code for code, name in DTYPES.items() if np.dtype(name) == dtype)
    return HEADER.pack(MAGIC, VERSION, code, count)


def shard_name(prefix: str, counter: int) -> str:
    """`<prefix>_<10-digit counter>.bin`."""
    return f"{prefix}_{counter:010d}.bin"


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write one shard of exactly len(tokens) tokens, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as f:
        f.write(header(tokens.dtype, len(tokens)))
        tokens.tofile(f)
    os.replace(temporary, path)


def read_header(path: Path) -> Segment:
    """Where the tokens of one shard are. Raises UserError when the header is corrupt."""
    with open(path, "rb") as f:
        raw = f.read(HEADER.size)
    if len(raw) < HEADER.size:
        raise UserError(f"Corrupt shard {path}: {len(raw)} bytes, less than the {HEADER.size}-byte header.")
    magic, version, code, count = HEADER.unpack(raw)
    if magic != MAGIC or version != VERSION:
        raise UserError(
            f"Corrupt shard {path}: starts with {magic!r} version {version}, not {MAGIC!r} version {VERSION}."
        )
    dtype = np.dtype(DTYPES.get(code, "<f8"))
    if dtype.kind not in "iu":
        raise UserError(f"Corrupt shard {path}: dtype code {code} is not an integer type (1-5 or 8).")
    expected, size = HEADER.size + count * dtype.itemsize, path.stat().st_size
    if size != expected:
        raise UserError(
            f"Corrupt shard {path}: the header promises {count} tokens ({expected} bytes), the file has "
            f"{size} bytes. It was cut short or copied badly: write or copy it again."
        )
    return Segment(path, HEADER.size, dtype, count)


def open_stream(paths: Sequence[Path], info: StreamInfo) -> FileStream:
    """All shards as one stream."""
    return FileStream([read_header(path) for path in paths], info)
