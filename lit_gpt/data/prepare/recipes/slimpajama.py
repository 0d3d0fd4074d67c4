"""SlimPajama-627B as published: <source>/<train | validation | test>/chunk*/*.jsonl.zst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lit_gpt.data.documents import Document, Search, find_files, read_documents
from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.prepare.recipes import ReadOptions
from lit_gpt.errors import UserError

SPLITS = ("train", "validation", "test")


def find(source: Path, search: Search) -> list[tuple[str | None, Piece]]:
    """The files of every split folder that is there. Raises UserError when none is."""
    found: list[tuple[str | None, Piece]] = []
    search = replace(search, include=search.include or ("chunk*/*.jsonl.zst",), text_key=search.text_key or "text")
    for split in SPLITS:
        if any((source / split).glob("chunk*")):
            pieces = find_files(source / split, search)
            found += [(split, replace(p, key=f"{split}/{p.key}")) for p in pieces]
    if not found:
        raise UserError(
            f"{str(source)!r} is not SlimPajama: expected folders such as train/chunk1 with .jsonl.zst files. "
            "Give the folder that holds train, validation and test."
        )
    return found


def read(piece: Piece, options: ReadOptions, left: LeftOut) -> Iterator[Document]:
    """The documents of one file."""
    return read_documents(piece, options.text_key or "text", left)
