"""What preparation did not use, counted by reason, with the first places of each."""

from __future__ import annotations

from typing import Any

from lit_gpt.data.codec import opened_utf8, parquet_file
from lit_gpt.data.kinds import Piece
from lit_gpt.errors import UserError

EXAMPLES = 3  # places that are kept per reason: enough to go and look
PHRASES = {  # of what is counted: (one, several)
    "files": ("file left out", "files left out"),
    "records": ("record left out", "records left out"),
    "bytes": ("undecodable byte became U+FFFD", "undecodable bytes became U+FFFD"),
    "characters": ("character became the unknown token", "characters became the unknown token"),
    "dropped": ("character left out", "characters left out"),
}
Counts = dict[str, dict[str, dict[str, Any]]]  # {what: {reason: {"count": n, "examples": [...]}}}


class LeftOut:
    """Counts files, records, bytes and characters that are not in the data as they were found.

    strict: raise UserError, with the place, at the first one that is a fault of the input.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.counts: Counts = {}

    def add(self, what: str, reason: str, piece: Piece, where: Any = None, count: int = 1, fault: bool = True) -> None:
        """Count something that is not in the data as it was found.

        what: a key of PHRASES. where: its place in the piece's file, as documents know it. fault: whether it is a fault
        of the input, at which `strict` stops. Raises UserError there.
        """
        if self.strict and fault:
            raise UserError(
                f"{place(piece, where, str(piece.path))}: {reason}. Mend it, or leave out --strict to have such "
                "things counted."
            )
        self._merge(what, reason, count, [[piece.key, where]])

    def merge(self, counts: Counts) -> None:
        """Add the counts of another LeftOut."""
        for what, reasons in counts.items():
            for reason, entry in reasons.items():
                self._merge(what, reason, entry["count"], entry["examples"])

    def _merge(self, what: str, reason: str, count: int, examples: list[Any]) -> None:
        entry = self.counts.setdefault(what, {}).setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += count
        entry["examples"] = (entry["examples"] + examples)[:EXAMPLES]

    def placed(self, pieces: dict[str, Piece]) -> Counts:
        """The counts, with examples in words such as "a.jsonl, line 21". pieces: by their keys."""

        def word(key: str, where: Any) -> str:
            return place(pieces[key], where, key) if key in pieces else key

        return {
            what: {
                reason: {"count": entry["count"], "examples": [word(*e) for e in entry["examples"]]}
                for reason, entry in reasons.items()
            }
            for what, reasons in self.counts.items()
        }


def place(piece: Piece, where: Any, name: str) -> str:
    """A place in a file in words, such as "a.jsonl, line 21"; lines, rows and records are counted from 1.

    where: a byte offset in JSON lines, "group.row" in parquet, an index in other JSON.
    """
    form = piece.kind.form if piece.kind else ""
    if where is None or form not in ("lines", "values", "parquet"):
        return name
    if form == "parquet":
        group, row = map(int, where.split("."))
        with parquet_file(piece.path) as f:
            return f"{name}, row {1 + row + sum(f.metadata.row_group(i).num_rows for i in range(group))}"
    return f"{name}, record {where + 1}" if form == "values" else f"{name}, line {_line(piece, where)}"


def _line(piece: Piece, offset: int) -> int:
    """The number of the line that starts at a byte of the uncompressed UTF-8 text."""
    assert piece.kind
    line, left = 1, offset
    with open(piece.path, "rb") as raw, opened_utf8(raw, piece.kind.compression, piece.kind.encoding)[0] as f:
        while left > 0 and (data := f.read(min(left, 1 << 20))):
            line += data.count(b"\n")
            left -= len(data)
    return line


def sentences(counts: Counts) -> list[str]:
    """One line per reason: how many, why, and where the first ones are."""
    lines = []
    for what, reasons in counts.items():
        for reason, entry in reasons.items():
            count, examples = entry["count"], [*entry["examples"], *["..."] * (len(entry["examples"]) == EXAMPLES)]
            lines.append(f"{count:,} {PHRASES[what][count > 1]}: {reason} ({'; '.join(examples)})")
    return lines
