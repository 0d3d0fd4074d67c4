"""Bytes to text: compressed files and parquet opened alike, damage told from other errors, encodings."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lit_gpt.errors import UserError

_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # RFC 8878: a frame, or one to skip
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}


class Unusable(Exception):
    """A file holds nothing that can be read as text; the message is the reason, a phrase."""


def compression_of(start: bytes) -> str:
    """The compression of a file that starts like this, by its magic bytes; "" for none."""
    return next((name for name, mark in _COMPRESSED.items() if mark.match(start)), "")


@contextmanager
def damage_as_unusable() -> Iterator[None]:
    """Turn what the codec libraries raise for damaged data into Unusable; other errors pass."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:
        if getattr(e, "errno", None) is not None:  # the file system's, not the codec's
            raise
        raise Unusable(f"damaged ({e})") from e
    except Exception as e:
        if type(e).__module__.split(".")[0] not in ("zstandard", "pyarrow"):
            raise
        raise Unusable(f"damaged ({e})") from e


def opened(raw: io.BufferedReader, compression: str) -> IO[bytes]:
    """The bytes inside a compressed file, or the file itself. Raises EOFError at the end of a file that was cut."""
    if compression == "zstd":
        return io.BufferedReader(_Zstd(raw), 1 << 20)
    libraries: dict[str, Any] = {"gzip": gzip, "bzip2": bz2, "xz": lzma}
    return libraries[compression].open(raw) if compression else raw


def opened_utf8(raw: io.BufferedReader, compression: str, encoding: str) -> tuple[IO[bytes], int]:
    """(the text inside as UTF-8, undecodable bytes of another encoding); another encoding is held in memory."""
    f = opened(raw, compression)
    if encoding == "utf-8":
        return f, 0
    with f:
        text, undecodable = decode(f.read(), encoding)
    return io.BytesIO(text.encode()), undecodable


class _Zstd(io.RawIOBase):
    """All frames of a zstd file. zstandard's own reader ends quietly where a file was cut; this raises EOFError."""

    def __init__(self, raw: io.BufferedReader):
        try:
            import zstandard
        except ImportError as e:
            raise UserError("Reading zstd needs the package zstandard: pip install 'scalelab[data]'.") from e
        self._raw, self._new = raw, lambda: zstandard.ZstdDecompressor().decompressobj()
        self._frame, self._ready = self._new(), memoryview(b"")
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new(), False
            if not (data := data or self._raw.read(1 << 16)):
                if self._begun:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def parquet_library() -> Any:
    """The module pyarrow.parquet. Raises UserError without it."""
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise UserError("Reading parquet needs the package pyarrow: pip install 'scalelab[data]'.") from e
    return pyarrow.parquet


def parquet_file(path: Path) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises UserError without pyarrow."""
    return parquet_library().ParquetFile(path)


def decode(data: bytes, encoding: str = "utf-8") -> tuple[str, int]:
    """(the text of these bytes, how many of them could not be decoded and became U+FFFD)."""
    try:
        return data.decode(encoding), 0
    except UnicodeDecodeError:
        kept = data.decode(encoding, "ignore").encode(encoding)
        return data.decode(encoding, "replace"), len(data) - len(kept)


def without_surrogates(text: str) -> tuple[str, int]:
    """(text, lone surrogates); JSON may hold them and UTF-8 may not, so they become U+FFFD."""
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return clean, clean.count("\ufffd") - text.count("\ufffd")
