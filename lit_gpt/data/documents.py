"""Documents out of files and folders, each with a stable key."""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

from tqdm import tqdm

from lit_gpt.data.codec import Unusable, damage_as_unusable, decode, opened
from lit_gpt.data.fields import Skip, text_of
from lit_gpt.data.kinds import DATA_SUFFIXES, ODD_SHARE, Kind, Piece, key_of, look, suffixes
from lit_gpt.data.left_out import LeftOut, sentences
from lit_gpt.data.records import READERS
from lit_gpt.errors import UserError

DELAY = 5  # seconds of work without a bar
LEASE = re.compile(r"lease-\d{6,}")  # see train/lease.py


class Document(NamedTuple):
    """One text. key: where it came from, such as "a.jsonl@120", the same on every machine and in every run."""

    key: str
    text: str


@dataclass(frozen=True)
class Search:
    """Which files are wanted, what was not, and which have been found already.

    include, exclude: shell patterns tried on the name and on the path relative to the source; with
    `include` the suffix does not matter. text_key: field of a record that holds its text.
    left: counts what is left out. progress: a bar where looking at the files takes long.
    seen: (device, inode) of every file and folder found so far.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    text_key: str | None = None
    left: LeftOut = field(default_factory=LeftOut)
    progress: bool = False
    seen: set[tuple[int, int]] = field(default_factory=set)


def find_files(source: Path, search: Search | None = None) -> list[Piece]:
    """The files with text under a folder, sorted by key, or the one file.

    A file is taken when it holds records or parquet with a field for the text, or text under one of
    TEXT_SUFFIXES. Links are followed, each real file is read once. Without a search that counts them,
    files that are left out are a warning. Raises UserError when there is nothing to read, and for a file
    that was named and cannot be read.
    """
    search, given = search or Search(), search is not None
    try:
        if not source.is_dir():
            return [_named(source, search)]
        search.seen.add(_identity(source.stat()))
        here = replace(search, left=LeftOut(search.left.strict))
        walk = tqdm(_walk(source, here), desc="find", unit=" files", delay=DELAY, disable=not search.progress)
        pieces = [piece for found in walk if (piece := _piece(*found, here))]
    except OSError as e:
        raise UserError(f"Cannot open {source}: {e.strerror}.") from e
    if not pieces:
        why = "; ".join(sentences(here.left.placed({}))) or "the folder is empty"
        raise UserError(
            f"No text found under {str(source)!r}: {why}. Give a folder of text, JSON records or parquet; "
            "--include '*' takes files of every suffix that hold text."
        )
    search.left.merge(here.left.counts)
    if not given and here.left.counts:
        warnings.warn(f"In {source}: {'; '.join(sentences(here.left.placed({})))}", stacklevel=2)
    return sorted(pieces, key=lambda p: p.key)


def _named(path: Path, search: Search) -> Piece:
    if not path.is_file():
        raise UserError(f"The source {str(path)!r} is neither a file nor a folder; write its text into a file first.")
    if _identity(path.stat()) in search.seen:
        raise UserError(f"The source {str(path)!r} is read already, as a part of another one: name it once.")
    search.seen.add(_identity(path.stat()))
    return looked_at(Piece(path, key_of(path.name), path.stat().st_size), search.text_key)


def looked_at(piece: Piece, text_key: str | None = None) -> Piece:
    """The piece with its kind. Raises UserError when there is no text in it."""
    try:
        return piece if piece.kind else replace(piece, kind=look(piece.path, text_key))
    except Unusable as e:
        raise UserError(f"Cannot read text from {piece.path}: {e}.") from e


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _walk(source: Path, search: Search) -> Iterator[tuple[str, Path, os.stat_result]]:
    """(key, path, stat) of every regular file that is not hidden; the rest is counted.

    What a link points to comes after everything that is really there, and no folder comes twice.
    """
    real, links = deque([("", source)]), deque[tuple[str, Path]]()
    while real or links:
        key, path = (real or links).popleft()
        try:
            stat = path.stat()
            if S_ISREG(stat.st_mode):
                yield key, path, stat
            elif not S_ISDIR(stat.st_mode):
                _leave(search, path, key, "not a regular file")
            elif key and _identity(stat) in search.seen:
                _leave(search, path, key, "another name of a folder that is read already", fault=False)
            else:
                search.seen.add(_identity(stat))
                entries = sorted(os.scandir(path), key=lambda e: e.name)
                if key and _is_run({entry.name for entry in entries}):
                    _leave(search, path, key, "a run folder", fault=False)
                    continue
                for entry in entries:
                    name = f"{key}/" * bool(key) + key_of(entry.name)
                    if entry.name.startswith("."):
                        _leave(search, path, name, "hidden, its name starts with a dot", fault=False)
                    else:
                        (links if entry.is_symlink() else real).append((name, Path(entry.path)))
        except OSError as e:  # a broken link, or no permission
            if path == source:
                raise
            _leave(search, path, key, f"cannot be opened: {e.strerror}")


def _is_run(names: set[str]) -> bool:
    """Whether a folder of these names is a run's (train/run_folder.py): --out_dir may lie in the text itself.

    Its files would be new text at each resume. A lease is what a start writes first; early runs have none.
    """
    return {"config.yaml", "plan.json"} <= names or any(LEASE.fullmatch(name) for name in names)


def _leave(search: Search, path: Path, key: str, reason: str, fault: bool = True) -> None:
    search.left.add("files", reason, Piece(path, key, 0), fault=fault)


def _piece(key: str, path: Path, stat: os.stat_result, search: Search) -> Piece | None:
    """The file as a piece, None when it is left out."""

    def hit(patterns: Sequence[str]) -> bool:
        return any(fnmatch(path.name, p) or fnmatch(key, p) for p in patterns)

    if search.include and not hit(search.include):
        return _leave(search, path, key, "not matched by --include", fault=False)
    if hit(search.exclude):
        return _leave(search, path, key, "matched by --exclude", fault=False)
    suffix = suffixes(path.name)[0]
    known = bool(search.include) or suffix in (*DATA_SUFFIXES, ".arrow")  # which cannot be read, and look() says why
    by_suffix = f"{f'suffix {suffix}' if suffix else 'no suffix'}, which only --include takes"
    try:
        kind = look(path, search.text_key)
    except Unusable as e:
        return _leave(search, path, key, str(e) if known else by_suffix, fault=known and str(e) != "empty")
    except OSError as e:
        return _leave(search, path, key, f"cannot be opened: {e.strerror}")
    if kind.form == "text" and not known:
        return _leave(search, path, key, by_suffix, fault=False)
    if stat.st_ino and _identity(stat) in search.seen:
        return _leave(search, path, key, "another name of a file that is read already", fault=False)
    search.seen.add(_identity(stat))
    return Piece(path, key, stat.st_size, kind=kind)


def read_documents(piece: Piece, text_key: str | None = None, left: LeftOut | None = None) -> Iterator[Document]:
    """The documents of a piece in file order, none of them empty. Undecodable bytes become U+FFFD.

    text_key: the field of a record that holds its text; by default the first of TEXT_KEYS, else
    `messages`. left: counts records that cannot be used and undecodable bytes. Raises UserError, naming
    the file, when it cannot be read.
    """
    left = LeftOut() if left is None else left
    try:
        piece = looked_at(piece, text_key)
        with damage_as_unusable():
            if (kind := piece.kind or Kind("text")).form == "text":
                yield from _text(piece, kind, left)
            else:
                yield from _record_texts(piece, kind, text_key, left)
    except Unusable as e:
        left.add("files", f"not read to its end: {e}", piece)
    except OSError as e:
        raise UserError(f"Cannot read {piece.path}: {e}.") from e


def _text(piece: Piece, kind: Kind, left: LeftOut) -> Iterator[Document]:
    with open(piece.path, "rb") as raw, opened(raw, kind.compression) as f:
        data = f.read()
    text, undecodable = decode(data, kind.encoding)
    nuls = text.count("\0") if "\0" in text else 0  # to search is 25 times as fast as to count
    if undecodable + nuls > ODD_SHARE * len(data):
        raise Unusable("binary after its start")
    if undecodable:
        left.add("bytes", f"not {kind.encoding.upper()}", piece, None, undecodable)
    del data  # the text alone is held while it is used
    if text := text.removeprefix("\ufeff"):
        yield Document(piece.key, text)


def _record_texts(piece: Piece, kind: Kind, text_key: str | None, left: LeftOut) -> Iterator[Document]:
    for where, record in READERS[kind.form](piece, kind, text_key, left):
        try:
            text, undecodable = text_of(record, text_key)
        except Skip as e:
            left.add("records", str(e), piece, where)
            continue
        if undecodable:
            left.add("bytes", "not UTF-8, or lone surrogates", piece, where, undecodable)
        if text:
            yield Document(f"{piece.key}@{where}", text)
        else:
            left.add("records", "empty text", piece, where, fault=False)
