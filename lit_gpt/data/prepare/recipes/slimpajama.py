"""SlimPajama-627B as published: <source>/<train | validation | test>/chunk*/*.jsonl.zst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lit_gpt.data.documents import Document, Piece, find_files, read_documents
from lit_gpt.data.prepare.recipes import ReadOptions
from lit_gpt.errors import UserError

SPLITS = ("train", "validation", "test")


def find(source: Path, include: Sequence[str], exclude: Sequence[str]) -> list[tuple[str | None, Piece]]:
    """The files of every split folder that is there. Raises UserError when none is."""
    found: list[tuple[str | None, Piece]] = []
    for split in SPLITS:
        if any((source / split).glob("chunk*")):
            pieces = find_files(source / split, include or ("chunk*/*.jsonl.zst",), exclude)
            found += [(split, replace(p, key=f"{split}/{p.key}")) for p in pieces]
    if not found:
        raise UserError(
            f"{str(source)!r} is not SlimPajama: expected folders such as train/chunk1 with .jsonl.zst files. "
            "Give the folder that holds train, validation and test."
        )
    return found


def read(piece: Piece, options: ReadOptions) -> Iterator[Document]:
    """The documents of one file."""
    return read_documents(piece, options.text_key or "text")
