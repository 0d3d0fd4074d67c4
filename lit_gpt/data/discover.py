"""From a data folder to a corpus: which files belong to a split, and what is known about them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lit_gpt.data.corpus import Corpus
from lit_gpt.data.documents import find_files
from lit_gpt.data.formats import open_files, text
from lit_gpt.data.meta import read_meta, stream_info
from lit_gpt.data.mixture import load_mixture
from lit_gpt.data.remote import localise
from lit_gpt.data.stream import StreamInfo, TokenStream
from lit_gpt.errors import UserError


def open_corpus(
    data_dir: str,
    split_prefix: str,
    block: int,
    seed: int,
    mixture: str | None = None,
    shuffle: bool = True,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
    tokenizer: str = "bytes",
    repeat: bool = True,
) -> Corpus:
    """Open one split of a data folder.

    data_dir: folder, or remote root such as s3://bucket/data, of token files or of plain text.
    split_prefix: the files are `<data_dir>/<split_prefix>*.bin` ("validation" also finds val*.bin,
    and both also find names like fineweb_train_*.bin), or whatever is in the folder of that name.
    block: targets per sample. seed, shuffle, repeat: see Corpus.
    mixture: a JSON file {path prefix relative to data_dir: weight} to use instead of split_prefix; a
    prefix that is a folder stands for that folder's split.
    eos_token_id, vocab_size: override what the data's meta.json says.
    tokenizer: spec for plain text. Raises UserError for everything wrong with any of them.
    """
    root = localise(data_dir)
    if not root.is_dir():
        raise UserError(f"The data folder {data_dir!r} does not exist. Give a folder of token files or text.")
    weights = load_mixture(mixture) if mixture else {"": 1.0}
    given = StreamInfo(split_prefix, eos_token_id, vocab_size, None, tokenizer)
    sources = [(name or split_prefix, _open_source(root, name, given), weight) for name, weight in weights.items()]
    return Corpus(sources, block, seed, shuffle, repeat)


def _open_source(root: Path, name: str, given: StreamInfo) -> TokenStream:
    folder = root / name
    if folder.is_dir():
        return _open_split(folder, given)
    files = _bins(folder.parent, folder.name)
    if not files:
        raise UserError(
            f"The mixture names {name!r}, but there is no folder {name} and no file {name}*.bin in {root}. "
            f"{_listing(root)}"
        )
    return _open_bins(files, given, folder.name)


def _open_split(root: Path, given: StreamInfo) -> TokenStream:
    folder, prefix = (root / given.split).parent, (root / given.split).name
    for files in (_bins(folder, p, inside) for inside in (False, True) for p in _spellings(prefix)):
        if files:
            return _open_bins(files, given, prefix)
    for name in _spellings(prefix):
        if files := _bins(folder / name, ""):
            return _open_bins(files, given, prefix)
        if _holds_text(folder / name):
            return _open_text(folder / name, given, divided=False)
    if _holds_text(folder) and not any(folder.glob("*.bin")):
        return _open_text(folder, given, divided=True)
    raise UserError(f"No data for split {prefix!r}: no file {prefix}*.bin in {folder}. {_listing(folder)}")


def _spellings(prefix: str) -> tuple[str, ...]:
    return ("validation", "val") if prefix == "validation" else (prefix,)


def _bins(folder: Path, prefix: str, inside: bool = False) -> list[Path]:
    """Sorted .bin files whose name starts with the prefix; with `inside`, holds it after a separator."""
    pattern = re.compile((r".*[._-]" if inside else "") + re.escape(prefix))
    return sorted(p for p in folder.glob("*.bin") if pattern.match(p.name) and not p.name.startswith("."))


def _open_bins(files: list[Path], given: StreamInfo, prefix: str) -> TokenStream:
    meta = read_meta(files[0].parent)
    known = stream_info(meta, _meta_split(meta, prefix))
    return open_files(files, _override(known, given), meta["format"] if meta else None)


def _meta_split(meta: dict | None, prefix: str) -> str:
    """The split of meta.json that a prefix belongs to: "train_0000000001" belongs to "train"."""
    splits = (meta or {}).get("splits", {})
    return next((s for s in splits if prefix.startswith(s) or s.startswith(prefix)), prefix)


def _override(known: StreamInfo, given: StreamInfo) -> StreamInfo:
    if None not in (known.vocab_size, given.vocab_size) and (given.vocab_size or 0) < (known.vocab_size or 0):
        raise UserError(
            f"The vocabulary size {given.vocab_size} was given, the data was prepared with a tokenizer of "
            f"{known.vocab_size} tokens. Leave it out, or give at least {known.vocab_size}."
        )
    return replace(
        known,
        eos_id=known.eos_id if given.eos_id is None else given.eos_id,
        vocab_size=given.vocab_size or known.vocab_size,
    )


def _holds_text(folder: Path) -> bool:
    return any(text.matches(p) for p in folder.rglob("*"))


def _open_text(folder: Path, given: StreamInfo, divided: bool) -> TokenStream:
    """divided: the folder holds all splits, to be told apart by hash; else all of it is the one split."""
    split = "" if not divided else "validation" if "val" in given.split else "train"
    paths = [piece.path for piece in find_files(folder)]
    stream = text.open_stream(paths, replace(given, split=split))
    if not stream.num_tokens:
        raise UserError(f"No data for split {given.split!r}: the text in {folder} is too small to divide.")
    known = StreamInfo(split, stream.eos_id, stream.vocab_size)
    stream.vocab_size = _override(known, given).vocab_size
    return stream


def _listing(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"The folder {folder} holds: {', '.join(names[:12])}{more}." if names else f"{folder} is empty."
