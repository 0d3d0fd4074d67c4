"""Units of work: what one worker reads and writes in one go. Independent of the number of workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lit_gpt.data.codec import parquet_file
from lit_gpt.data.kinds import Kind, Piece

# A unit is what a worker does in one go, and what is lost when it is killed: seconds of work. Small files are grouped
# up to the first size; larger ones that can be cut are cut into pieces of about the second.
UNIT_BYTES = 8 * 2**20
PIECE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Unit:
    """Pieces of one split (None: divided by hash) in the order their tokens will have."""

    index: int
    split: str | None
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes on disk of all pieces."""
        return sum(p.size for p in self.pieces)


def cut(piece: Piece) -> list[Piece]:
    """Large JSON lines by byte ranges, large parquet by row groups, anything else whole."""
    if piece.size <= PIECE_BYTES:
        return [piece]
    if piece.kind == Kind("lines"):
        starts = range(0, piece.size, PIECE_BYTES)
        ends = [min(s + PIECE_BYTES, piece.size) for s in starts]
        return [replace(piece, start=s, end=e, size=e - s) for s, e in zip(starts, ends)]
    if piece.kind == Kind("parquet"):
        with parquet_file(piece.path) as f:
            groups = f.num_row_groups
        step = max(1, groups * PIECE_BYTES // piece.size)
        starts = range(0, groups, step)
        ends = [min(s + step, groups) for s in starts]
        return [replace(piece, start=s, end=e, size=piece.size * (e - s) // groups) for s, e in zip(starts, ends)]
    return [piece]


def make_units(found: Iterable[tuple[str | None, Piece]]) -> list[Unit]:
    """Cut and group pieces, keeping their order."""
    units: list[Unit] = []
    for split, whole in found:
        for piece in cut(whole):
            last = units[-1] if units else None
            if last and last.split == split and last.size + piece.size <= UNIT_BYTES:
                units[-1] = replace(last, pieces=(*last.pieces, piece))
            else:
                units.append(Unit(len(units), split, (piece,)))
    return units
