"""Any folder, or one file, of text, JSON records or parquet, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_gpt.data.documents import Document, Search, find_files, read_documents
from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.prepare.recipes import ReadOptions


def find(source: Path, search: Search) -> list[tuple[str | None, Piece]]:
    """Every readable file; documents are divided into train and validation by hash."""
    return [(None, piece) for piece in find_files(source, search)]


def read(piece: Piece, options: ReadOptions, left: LeftOut) -> Iterator[Document]:
    """The documents of one file."""
    return read_documents(piece, options.text_key, left)
