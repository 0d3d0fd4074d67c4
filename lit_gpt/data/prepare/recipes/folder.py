"""Any folder, or one file, of text, jsonl (plain, gzip, zstd) or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_gpt.data.documents import Document, Piece, find_files, read_documents
from lit_gpt.data.prepare.recipes import ReadOptions


def find(source: Path, include: Sequence[str], exclude: Sequence[str]) -> list[tuple[str | None, Piece]]:
    """Every readable file; documents are divided into train and validation by hash."""
    return [(None, piece) for piece in find_files(source, include, exclude)]


def read(piece: Piece, options: ReadOptions) -> Iterator[Document]:
    """The documents of one file."""
    return read_documents(piece, options.text_key)
