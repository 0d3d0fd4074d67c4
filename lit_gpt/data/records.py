"""The records of a file: JSON lines, other JSON, or rows of parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from lit_gpt.data.codec import decode, opened_utf8, parquet_file
from lit_gpt.data.fields import Skip, wanted_keys
from lit_gpt.data.kinds import BETWEEN_VALUES, Kind, Piece
from lit_gpt.data.left_out import LeftOut


def json_lines(piece: Piece, kind: Kind, text_key: str | None, left: LeftOut) -> Iterator[tuple[int, Any]]:
    """(byte offset in the uncompressed UTF-8 file, record) per line that is not blank."""
    with _opened(piece, kind, left) as f:
        offset = 0
        if piece.start:
            # A line belongs to the piece its first byte is in; the byte before tells whether one starts here.
            f.seek(piece.start - 1)
            offset = piece.start - 1 + len(f.readline())
        while (piece.end is None or offset < piece.end) and (line := f.readline()):
            if not line.isspace():
                try:
                    record, undecodable = _parsed(line)
                except Skip as e:
                    left.add("records", str(e), piece, offset)
                else:
                    if undecodable:
                        left.add("bytes", "not UTF-8", piece, offset, undecodable)
                    yield offset, record
            offset += len(line)


def _parsed(line: bytes) -> tuple[Any, int]:
    """(record, undecodable bytes) of one line. Raises Skip when it is not JSON."""
    text, undecodable = decode(line)
    try:
        return json.loads(text), undecodable
    except (ValueError, RecursionError) as e:
        if text.startswith("\ufeff"):  # a byte order mark, at the start of the file or of one that was appended
            return _parsed(line[3:])
        raise Skip("not JSON" if line.endswith(b"\n") else "not JSON, the last line may be cut") from e


@contextmanager
def _opened(piece: Piece, kind: Kind, left: LeftOut) -> Iterator[IO[bytes]]:
    """The UTF-8 bytes of a file of records; undecodable ones of another encoding are counted."""
    with open(piece.path, "rb") as raw:
        f, undecodable = opened_utf8(raw, kind.compression, kind.encoding)
        with f:
            if undecodable:
                left.add("bytes", f"not {kind.encoding.upper()}", piece, None, undecodable)
            yield f


def json_values(piece: Piece, kind: Kind, text_key: str | None, left: LeftOut) -> Iterator[tuple[int, Any]]:
    """(index, record) of a JSON array, or of objects that follow each other over several lines."""
    with _opened(piece, kind, left) as f:
        text, undecodable = decode(f.read())
    if undecodable:
        left.add("bytes", "not UTF-8", piece, None, undecodable)
    decoder, index, at = json.JSONDecoder(), 0, 0
    while (at := BETWEEN_VALUES.match(text, at).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess]
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            left.add("records", "not JSON from here on, the file may be cut", piece, index)
            return
        yield index, record
        index += 1


def parquet_rows(piece: Piece, kind: Kind, text_key: str | None, left: LeftOut) -> Iterator[tuple[str, Any]]:
    """("<row group>.<row>", record) for every row, read from the columns that may hold the text."""
    with parquet_file(piece.path) as f:
        names = f.schema_arrow.names
        columns = {name if name in names else name.split(".")[0] for name in wanted_keys(text_key)} & set(names)
        for group in range(piece.start, f.num_row_groups if piece.end is None else piece.end):
            row = 0
            for batch in f.iter_batches(1024, row_groups=[group], columns=sorted(columns)):
                for record in batch.to_pylist():
                    yield f"{group}.{row}", record
                    row += 1


READERS = {"lines": json_lines, "values": json_values, "parquet": parquet_rows}
