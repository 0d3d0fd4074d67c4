"""The sources of a preparation: their pieces, how documents are divided, and text to make a tokenizer from."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR

from lit_gpt.data.documents import Search
from lit_gpt.data.kinds import Piece, key_of
from lit_gpt.data.left_out import LeftOut, sentences
from lit_gpt.data.prepare.recipes import RECIPES, ReadOptions
from lit_gpt.data.splits import Splitter, key_hash
from lit_gpt.errors import UserError
from lit_gpt.utils.files import near

SAMPLES, SAMPLE = 16, 1 << 16  # bytes of a file that tell whether it has changed: all of it up to 1 MiB
Found = list[tuple[str | None, Piece]]  # (split, or None: divided by hash; piece)
Stamp = tuple[int, int] | None


def find(sources: list[str], recipe: str, search: Search) -> Found:
    """Every piece of the sources, in their order. Raises UserError for a source that cannot be used."""
    module, found, names = RECIPES.load(recipe), [], [key_of(Path(source).resolve().name) for source in sources]
    if not sources:
        raise UserError("No source was given: type --source FOLDER, or several.")
    for i, (source, name) in enumerate(zip(sources, names)):
        path = Path(source).expanduser()
        if not path.exists():
            raise UserError(f"The source {source!r} does not exist.{near(path)} Give a file or a folder of text.")
        prefix = "" if len(sources) == 1 else f"{name}/" if names.count(name) == 1 else f"{i}-{name}/"
        found += [(s, replace(p, key=prefix + p.key)) for s, p in module.find(path, search)]
    return found


def stamp(piece: Piece) -> Stamp:
    """The size of a file in bytes and when it was last written to; None where it is no longer there."""
    try:
        stat = piece.path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def content(piece: Piece) -> str:
    """Checksum of a file's bytes, of samples of a large one; "" for the folder of a recipe.

    CRC-32 misses one edit in four billion; a cryptographic hash took as long as all the rest that is done for bytes.
    """
    stat = piece.path.stat()
    if S_ISDIR(stat.st_mode):
        return ""
    found, size = 0, stat.st_size
    whole = size <= SAMPLES * SAMPLE
    with open(piece.path, "rb") as f:
        for i in range(1 if whole else SAMPLES):
            f.seek(i * (size - SAMPLE) // (SAMPLES - 1) if i else 0)
            found = zlib.crc32(f.read(SAMPLES * SAMPLE if whole else SAMPLE), found)
    return f"{found:08x}"


def make_splitter(found: Found, recipe: str, options: ReadOptions, fraction: float) -> Splitter:
    """Reads documents until both splits have one. Raises UserError when there is none."""
    left, read = LeftOut(options.strict), RECIPES.load(recipe).read
    free = [piece for split, piece in found if split is None]
    lone = len(free) == 1 and _is_text(free[0])

    def keys() -> Iterator[str]:
        for piece in free or [piece for _, piece in found]:
            if _is_text(piece):  # one document, which need not be read to be counted
                yield piece.key
            else:
                yield from (document.key for document in read(piece, options, left) if document.text)

    splitter = Splitter(keys(), fraction if free else 0.0, lone)
    if not splitter.count:
        why = "; ".join(sentences(left.placed({piece.key: piece for _, piece in found})))
        raise UserError(f"No document in the source has text: {why}.")
    return splitter


def _is_text(piece: Piece) -> bool:
    return piece.kind is not None and piece.kind.form == "text"


def sample(found: Found, recipe: str, options: ReadOptions, limit: int) -> Iterator[str]:
    """About `limit` characters of documents, an equal share per file, files in order of their hash."""
    left, share = limit, max(1 << 20, limit // len(found))
    for piece in sorted((p for _, p in found), key=lambda p: key_hash(p.key)):
        from_piece = 0
        for text in texts([piece], recipe, options):
            yield text[:left]
            left -= len(text)
            from_piece += len(text)
            if left <= 0:
                return
            if from_piece >= share:
                break


def texts(pieces: Iterable[Piece], recipe: str, options: ReadOptions) -> Iterator[str]:
    """The text of every document of the pieces."""
    for piece in pieces:
        yield from (document.text for document in RECIPES.load(recipe).read(piece, options, LeftOut(options.strict)))
