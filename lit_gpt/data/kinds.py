"""What a file holds, told by its first bytes: text, JSON records, parquet, or nothing that can be read as text."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.data.codec import Unusable, compression_of, damage_as_unusable, decode, opened, parquet_file
from lit_gpt.data.fields import has_text, no_field, wanted_keys

_PLAIN = (
    ".txt .md .rst .tex .py .pyi .c .h .cc .cpp .hpp .cu .cuh .java .js .ts .go .rs .rb .sh .html .css "
    ".toml .yaml .yml .sql .jl .lua .scala .swift .kt .r .m .pl .php"
)
TEXT_SUFFIXES = frozenset(_PLAIN.split())
JSON_SUFFIXES = frozenset((".json", ".jsonl", ".ndjson"))
DATA_SUFFIXES = TEXT_SUFFIXES | JSON_SUFFIXES | {".parquet"}  # taken without being asked for
COMPRESSION_SUFFIXES = frozenset((".gz", ".zst", ".zstd", ".bz2", ".xz"))

# Bytes of a file that are looked at: enough to see records and control characters, quick for many files. More are read
# only where the first JSON value is longer.
HEAD = 1 << 16
# The rule of Perl's -T and -B (perldoc -f -X): above 30% of odd bytes, or with NULs at its start, a file is no text.
ODD_SHARE = 0.3
_CONTROLS = bytes(i for i in range(32) if chr(i) not in "\t\n\v\f\r\b\x1b")

FIRST = re.compile(r"\[|(null\s+)*\{")
BETWEEN_VALUES = re.compile(r"[\s,\[\]\ufeff]*")  # the elements of an array are read as values that follow each other

# Arrow begins with its name in a file, and with four bytes of ones in a stream, as the library datasets keeps it.
TO_PARQUET = "write it as parquet first, such as datasets.load_from_disk(FOLDER)[SPLIT].to_parquet(FILE)"
_NOT_TEXT = {
    b"%PDF-": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x04\x22\x4d\x18": "lz4 data (decompress it first)",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1": f"an Arrow file ({TO_PARQUET})",
    b"\xff\xff\xff\xff": f"an Arrow stream ({TO_PARQUET})",
    b"LITPKDS": "a shard of token ids",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
}
_BYTE_ORDER_MARKS = (  # UTF-32's begins like UTF-16's, so it comes first
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


class Kind(NamedTuple):
    """form: "text", "lines" (a JSON record per line), "values" (other JSON) or "parquet".

    compression: "" or a name that codec.compression_of() gives. encoding: of the text inside.
    """

    form: str
    compression: str = ""
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Piece:
    """A file, or the part of it that one worker reads.

    key: path relative to the source folder. start, end: bytes of JSON lines, row groups of a
    parquet file; the whole file where end is None. size: bytes on disk, for progress.
    kind: what look() says of the file, asked when it is read if None.
    """

    path: Path
    key: str
    size: int
    start: int = 0
    end: int | None = None
    kind: Kind | None = None


def suffixes(name: str) -> tuple[str, str]:
    """("inner", "outer") suffix in lower case: (".jsonl", ".gz") of x.jsonl.gz, (".txt", "") of x.txt."""
    outer = Path(name.lower()).suffix
    if outer in COMPRESSION_SUFFIXES:
        return Path(Path(name.lower()).stem).suffix, outer
    return outer, ""


def key_of(name: str) -> str:
    """A file's name or relative path as text. Bytes that are not UTF-8, as out of old archives, become \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def look(path: Path, text_key: str | None = None) -> Kind:
    """The kind of a file, by its content.

    A name counts only as a promise: a file called .jsonl, .parquet or .gz must be that, or hold records.
    Raises Unusable when there is no text in it, OSError when it cannot be opened.
    """
    with open(path, "rb") as raw:
        start = raw.peek(HEAD)
        if start[:4] == b"PAR1":
            return _parquet_kind(path, text_key)
        compression = compression_of(start)
        with damage_as_unusable(), opened(raw, compression) as f:
            head = f.read(HEAD)
            encoding = _encoding(head)
            size = HEAD
            while (found := _json(_start(head, encoding), whole=len(head) < size)) is None:
                size *= 16
                head += f.read(size - len(head))
    form, records = found
    if form and has_text(records, text_key):
        return Kind(form, compression, encoding)
    _check_name(path.name, bool(compression), records, text_key)
    return Kind("text", compression, encoding)


def _encoding(head: bytes) -> str:
    """The encoding of a text that starts like this. Raises Unusable when it is no text."""
    if not head:
        raise Unusable("empty")
    if name := next((name for magic, name in _NOT_TEXT.items() if head.startswith(magic)), ""):
        raise Unusable(name)
    if head[257:262] == b"ustar":
        raise Unusable("a tar archive (unpack it first)")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "") or _unmarked(head)
    text, undecodable = decode(head, encoding)
    if text == "\ufeff":
        raise Unusable("empty")
    if "\0" in text:
        raise Unusable("binary (it holds NUL bytes)")
    plain = text.encode()
    if undecodable + len(plain) - len(plain.translate(None, _CONTROLS)) > ODD_SHARE * len(head):
        raise Unusable("binary, or not in UTF-8, UTF-16 or UTF-32")
    return encoding


def _unmarked(head: bytes) -> str:
    """UTF-16 without a mark: in Western text every second byte is NUL (as RFC 4627 tells JSON encodings apart)."""
    if 0 in head and len(head) > 3:
        even, odd = head[::2].count(0) / len(head[::2]), head[1::2].count(0) / len(head[1::2])
        if max(even, odd) > 0.5 and min(even, odd) == 0:
            return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _start(head: bytes, encoding: str) -> str:
    return decode(head, encoding)[0].removeprefix("\ufeff").lstrip()


def _json(text: str, whole: bool) -> tuple[str, list[dict[str, Any]]] | None:
    """(form, first records) of a text that starts like this: ("", []) for no JSON, None when too short to tell.

    A null in the place of a record is passed over, at the start as anywhere else.
    """
    if not FIRST.match(text):
        return "", []
    lines = text.split("\n") if whole else text.split("\n")[:-1]
    if text[0] != "[" and (records := [r for line in lines if line[:1] == "{" and (r := _loaded(line))]):
        return "lines", records
    decoder, at, records = json.JSONDecoder(), 0, []
    try:
        while (at := BETWEEN_VALUES.match(text, at).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess]
            value, at = decoder.raw_decode(text, at)
            if not isinstance(value, dict | None):
                return "", []
            records += [value] if value is not None else []
    except (json.JSONDecodeError, RecursionError) as e:
        if not records:
            cut = getattr(e, "pos", 0) > len(text) - 64 or str(e).startswith("Unterminated string")
            return None if cut and not whole else ("", [])
    return ("values" if records else ""), records


def _loaded(line: str) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _check_name(name: str, compressed: bool, records: list[dict[str, Any]], text_key: str | None) -> None:
    """Raise Unusable when a file without usable records is called something that plain text is not."""
    inner, outer = suffixes(name)
    if records and inner not in TEXT_SUFFIXES:
        raise Unusable(no_field(dict.fromkeys(key for record in records for key in record), text_key))
    if inner in JSON_SUFFIXES:
        raise Unusable(f"named {inner}, but its first lines are not JSON records")
    promised = outer if outer and not compressed else ".parquet" if inner == ".parquet" else ""
    if promised:
        raise Unusable(f"named {promised}, but its content is not")


def _parquet_kind(path: Path, text_key: str | None) -> Kind:
    with damage_as_unusable(), parquet_file(path) as f:
        names = f.schema_arrow.names
    roots = {name.split(".")[0] if name not in names else name for name in wanted_keys(text_key)}
    if not roots & set(names):
        raise Unusable(no_field(names, text_key))
    return Kind("parquet")
