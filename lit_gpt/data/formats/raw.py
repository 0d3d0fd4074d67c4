"""Token ids and nothing else, as nanoGPT writes them: uint16 unless meta.json names another type.

Nothing in such a file says what it holds, so whatever shows that it is something else is an error.
"""

from __future__ import annotations

import codecs
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lit_gpt.data.stream import FileStream, Segment, StreamInfo
from lit_gpt.errors import UserError

FALLBACK = True
UINT16 = np.dtype("<u2")
# The first bytes of other kinds of files, as their specifications give them: (what it is, what to do).
MARKS = {
    b"\x93NUMPY": ("a NumPy .npy file", "write its ids alone with array.tofile"),
    b"\x1f\x8b\x08": ("compressed by gzip", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it"),
    b"BZh": ("compressed by bzip2", "unpack it"),
    b"PK\x03\x04": ("a zip archive (.npz, .pt and the like)", "unpack it"),
    b"PAR1": ("a parquet file", "give it its suffix and prepare it with scripts/prepare_text.py"),
    b"ARROW1": ("an Arrow file", "convert it"),
    b"\x89HDF": ("an HDF5 file", "convert it"),
    b"%PDF": ("a PDF document", "remove it"),
    b"version https://git-lfs": ("the pointer that Git LFS leaves in place of a file", "run git lfs pull"),
}
TEXT_BYTES = 32  # so many bytes that are all text by chance: under 1e-12 for ids that use most of a vocabulary
CONTROL = set(range(32)) - set(map(ord, string.whitespace)) | {127}
STRETCH = 1 << 12  # numbers that are looked at in each of three places of a file: its start, middle and end


def matches(path: Path) -> bool:
    """True for any .bin file: the format has no mark of its own."""
    return path.suffix == ".bin"


def open_stream(paths: Sequence[Path], info: StreamInfo) -> FileStream:
    """All files as one stream.

    Raises UserError for a file that is something else, a size that is no whole number of ids, and,
    where no type is named, for ids of more than 16 bits.
    """
    dtype = np.dtype(info.dtype) if info.dtype else UINT16
    for path in paths:
        _check(path, dtype, named=info.dtype is not None)
    segments = [Segment(path, 0, dtype, path.stat().st_size // dtype.itemsize) for path in paths]
    return FileStream(segments, replace(info, guessed=info.dtype is None))


def _check(path: Path, dtype: np.dtype, named: bool) -> None:
    with open(path, "rb") as f:
        head = f.read(512)
    for mark, (what, do) in MARKS.items():
        if head.startswith(mark):
            raise UserError(f"{path} is {what} and not a file of token ids: {do}.")
    if not named and _is_text(head):
        start = head.lstrip()[:1]
        kind = "JSON" if start in (b"{", b"[") else "HTML or XML" if start == b"<" else "plain text"
        raise UserError(f"{path} is {kind} and not a file of token ids. Text is prepared by scripts/prepare_text.py.")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes and no known header, so it is not a file of {dtype.name} ids, "
            f"{dtype.itemsize} bytes each. It is cut short or of another format."
        )
    if not named and (bits := _wider(path, size)):
        raise UserError(
            f"{path} looks like ids of {bits} bits, and a file without a header is read as uint16 where nothing names "
            f'another type: put a meta.json into {path.parent} that does, such as {{"dtype": "uint{bits}"}}.'
        )


def _is_text(head: bytes) -> bool:
    """UTF-8 (cut anywhere) without control characters."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return len(head) >= TEXT_BYTES and not CONTROL & set(head)


def _wider(path: Path, size: int) -> int | None:
    """64 or 32 where a file holds ids of so many bits; None where it does not look like that.

    The upper half of an id below 2**20 is below 16, and that of a negative one 0xFFFF. No uint16 data
    has that at every second place and larger ids between.
    """
    places = sorted({0, size // 16 * 8, max(size - 2 * STRETCH, 0) // 8 * 8})
    halves = np.concatenate([np.fromfile(path, UINT16, STRETCH, offset=place) for place in places])
    for width in (4, 2):
        ids = halves[: len(halves) // width * width].reshape(-1, width)
        upper = ids[:, 1:][ids[:, 1:] != 0xFFFF]
        if len(ids) >= 16 and len(upper) > len(ids) // 2:  # fewer tell nothing
            most = upper.max()
            if most < 16 and ids[:, 0].max() > (15 if most else 0):
                return 16 * width
    return None
