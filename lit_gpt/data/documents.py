"""Documents out of text files, jsonl (plain, gzip, zstd) and parquet, each with a stable key."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import UserError

_PLAIN = (
    ".txt .md .rst .tex .py .pyi .c .h .cc .cpp .hpp .cu .cuh .java .js .ts .go .rs .rb .sh .html .css "
    ".toml .yaml .yml .sql .jl .lua .scala .swift .kt .r .m .pl .php"
)
TEXT_SUFFIXES = tuple(_PLAIN.split())
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zstd")
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, ".parquet")
TEXT_KEYS = ("text", "file_contents", "content", "file_content")


class Document(NamedTuple):
    """key: where it came from, the same on every machine and run."""

    key: str
    text: str


@dataclass(frozen=True)
class Piece:
    """A file, or the part of it that one worker reads.

    key: path relative to the source folder. start, end: bytes of a .jsonl, row groups of a
    .parquet; the whole file where end is None. size: bytes on disk, for progress.
    """

    path: Path
    key: str
    size: int
    start: int = 0
    end: int | None = None


def find_files(source: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Piece]:
    """The readable files under a folder (or the one file), sorted by key.

    include, exclude: shell patterns tried on the name and on the relative path; with `include`
    the suffix no longer matters. Hidden files and folders are left out. Raises UserError when
    there is nothing to read.
    """

    def wanted(key: str, name: str) -> bool:
        def hit(patterns: Sequence[str]) -> bool:
            return any(fnmatch(name, p) or fnmatch(key, p) for p in patterns)

        return (hit(include) if include else name.lower().endswith(SUFFIXES)) and not hit(exclude)

    if source.is_file():
        return [Piece(source, source.name, source.stat().st_size)]
    paths = (p for p in source.rglob("*") if p.is_file())
    keyed = sorted((p.relative_to(source).as_posix(), p) for p in paths)
    visible = ((key, p) for key, p in keyed if not any(part.startswith(".") for part in key.split("/")))
    pieces = [Piece(p, key, p.stat().st_size) for key, p in visible if wanted(key, p.name)]
    if not pieces:
        what = f"matches {', '.join(include)}" if include else f"ends in one of {', '.join(SUFFIXES)}"
        raise UserError(f"No text found: no file under {str(source)!r} {what}.")
    return pieces


def read_documents(piece: Piece, text_key: str | None = None) -> Iterator[Document]:
    """The documents of a piece in file order. Text is UTF-8; undecodable bytes become U+FFFD.

    text_key: the field of a record that holds its text; by default the first of TEXT_KEYS, else
    `messages`. Raises UserError, naming the file, for anything that cannot be read.
    """
    name = piece.path.name.lower()
    try:
        if name.endswith(".parquet"):
            records = _parquet_records(piece)
        elif name.endswith(JSONL_SUFFIXES):
            records = _json_records(piece, name)
        else:
            yield Document(piece.key, _clean(piece.path.read_bytes().decode(errors="replace")))
            return
        for where, record in records:
            yield Document(f"{piece.key}@{where}", _clean(_text_of(record, text_key)))
    except UserError as e:
        raise UserError(f"{piece.path}: {e}") from e
    except Exception as e:  # every codec library has its own exceptions
        raise UserError(f"Cannot read {piece.path}: {type(e).__name__}: {e}.") from e


def _clean(text: str) -> str:
    """Lone surrogates, which JSON may hold and UTF-8 may not, become U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json_records(piece: Piece, name: str) -> Iterator[tuple[int, dict]]:
    """(byte offset in the uncompressed file, record) per line that is not blank."""
    with open(piece.path, "rb") as raw, _decompressed(raw, name) as f:
        offset = 0
        if piece.start:
            # A line belongs to the piece its first byte is in; the byte before tells whether one starts here.
            f.seek(piece.start - 1)
            offset = piece.start - 1 + len(f.readline())
        while (piece.end is None or offset < piece.end) and (line := f.readline()):
            if line.strip():
                yield offset, json.loads(line)
            offset += len(line)


def _decompressed(raw: io.BufferedReader, name: str):
    if name.endswith(".gz"):
        return gzip.open(raw)
    if name.endswith((".zst", ".zstd")):
        try:
            import zstandard
        except ImportError as e:
            raise UserError("reading zstd needs the package zstandard: pip install 'scalelab[data]'.") from e
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), 1 << 20)
    return raw


def parquet_groups(path: Path) -> list[int]:
    """Bytes per row group of a parquet file."""
    with _parquet_file(path) as f:
        return [f.metadata.row_group(i).total_byte_size for i in range(f.metadata.num_row_groups)]


def _parquet_file(path: Path):
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise UserError("reading parquet needs the package pyarrow: pip install 'scalelab[data]'.") from e
    return pyarrow.parquet.ParquetFile(path)


def _parquet_records(piece: Piece) -> Iterator[tuple[str, dict]]:
    """("row group.row", record)."""
    with _parquet_file(piece.path) as f:
        for group in range(piece.start, f.num_row_groups if piece.end is None else piece.end):
            row = 0
            for batch in f.iter_batches(1024, row_groups=[group]):
                for record in batch.to_pylist():
                    yield f"{group}.{row}", record
                    row += 1


def _text_of(record: dict, text_key: str | None) -> str:
    for key in [text_key] if text_key else TEXT_KEYS:
        if isinstance(record.get(key), str):
            return record[key]
    if text_key is None and isinstance(record.get("messages"), list):
        return "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in record["messages"])
    raise UserError(
        f"a record has no text under {text_key or ', '.join((*TEXT_KEYS, 'messages'))}; its fields are "
        f"{', '.join(map(str, record))}. Name the field with --text_key."
    )


def key_hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


class Splitter:
    """Assigns documents to "train" or "validation" by the hash of their key.

    fraction: of the documents that are validation. Two corrections keep small sets usable: of
    several text files at least one is validation, and a lone text file gives its last characters.
    """

    def __init__(self, pieces: Iterable[Piece], fraction: float):
        self.fraction = fraction
        texts = [p for p in pieces if p.size]  # an empty document is dropped later
        only_files = all(not p.path.name.lower().endswith((*JSONL_SUFFIXES, ".parquet")) for p in texts)
        self.lone = only_files and len(texts) == 1
        self.least = min((key_hash(p.key) for p in texts), default=0.0) if only_files else 0.0

    def __call__(self, document: Document) -> list[tuple[str, str]]:
        """[(split, text)] of one document: one entry, or two for a lone file."""
        if self.fraction <= 0:
            return [("train", document.text)]
        if self.lone:
            cut = len(document.text) - int(len(document.text) * self.fraction)
            return [("train", document.text[:cut]), ("validation", document.text[cut:])]
        held_out = key_hash(document.key) < self.fraction or key_hash(document.key) == self.least
        return [("validation" if held_out else "train", document.text)]
