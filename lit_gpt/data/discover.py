"""From a data folder to a corpus: which files belong to a split, and what is known about them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_gpt.data.corpus import Corpus
from lit_gpt.data.documents import find_files
from lit_gpt.data.formats import open_files, text
from lit_gpt.data.meta import NAME, read_meta, stream_info
from lit_gpt.data.mixture import load_mixture, source_names
from lit_gpt.data.remote import NoData, fetch, is_remote, local_path
from lit_gpt.data.stream import StreamInfo, TokenStream
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Phase
from lit_gpt.utils.files import near

WANTED = "a folder of token files or text; scripts/prepare_text.py makes one from text."


def open_corpus(
    data_dir: str,
    split_prefix: str,
    block: int,
    seed: int,
    mixture: str | Sequence[Phase] | None = None,
    shuffle: bool = True,
    eos_token_id: int | None = None,
    tokenizer: str = "bytes",
    repeat: bool = True,
    offsets: Mapping[str, int] | None = None,
) -> Corpus:
    """Open one split of a data folder.

    data_dir: folder, or remote root such as s3://bucket/data, of token files or of plain text.
    split_prefix: the files are `<data_dir>/<split_prefix>*.bin` ("validation" also finds val*.bin,
    and both also find names like fineweb_train_*.bin), or whatever is in the folder of that name.
    block: targets per sample. seed, shuffle, repeat, offsets: see Corpus.
    mixture: a JSON file {path prefix relative to data_dir: weight} to use instead of split_prefix, or one of phases, or
    what load_mixture makes of it; a prefix that is a folder stands for that folder's split.
    eos_token_id: overrides what the data's meta.json says.
    tokenizer: spec for plain text. Raises UserError for everything wrong with any of them.
    """
    root = fetch(data_dir) if is_remote(data_dir) else local_path(data_dir)
    given = StreamInfo(split_prefix, eos_token_id, tokenizer=tokenizer)
    phases = load_mixture(mixture) if isinstance(mixture, str) else mixture or [Phase(from_tokens=0, weights={"": 1.0})]
    found = _find_all(root, source_names(phases), given)
    weights = {name: [phase["weights"].get(name, 0.0) for phase in phases] for name in found}
    sources = [(name or split_prefix, source.open(), weights[name]) for name, source in found.items()]
    return Corpus(sources, block, seed, shuffle, repeat, [phase["from_tokens"] for phase in phases], offsets)


def describe_sources(
    data_dir: str, split_prefix: str, mixture: str | None = None, eos_token_id: int | None = None
) -> list[tuple[str, StreamInfo]]:
    """(where it is, what is known of it) for every source that open_corpus would open, without opening it.

    Of a remote root everything but the token files is copied. Raises NoData where there is none.
    """
    given = StreamInfo(split_prefix, eos_token_id)
    names = source_names(load_mixture(mixture)) if mixture else [""]
    remote = is_remote(data_dir)
    root = fetch(data_dir, tokens=False) if remote else local_path(data_dir)
    if remote and not _holds_text(root):
        known = {name: _beside(root, name, given) for name in names}
    else:
        known = {name: source.info for name, source in _find_all(root, names, given).items()}
    return [(os.path.join(data_dir, name) if name else data_dir, known[name]) for name in names]


def _beside(root: Path, name: str, given: StreamInfo) -> StreamInfo:
    """What the nearest meta.json says where the token files themselves are not here."""
    places = (root / name / given.split, root / name, (root / name).parent)
    folder = next((place for place in places if (place / NAME).is_file()), root)
    return _override(stream_info(read_meta(folder), folder, given.split), given)


@dataclass(frozen=True)
class _Source:
    """The files of one source and what is known of them. info.split: the split, or the prefix of their names.

    divided: a folder of text with all splits in it, to be told apart by hash. None: token files.
    """

    folder: Path
    files: Sequence[Path]
    info: StreamInfo
    divided: bool | None = None

    def open(self) -> TokenStream:
        """Raises UserError for files that cannot be read and counts that are not those of meta.json."""
        if self.divided is not None:
            return self._open_text()
        meta = read_meta(self.folder) or {}
        stream = open_files(self.files, self.info, meta.get("format"))
        _check_counts(meta.get("splits", {}).get(self.info.split, {}), self, stream.num_tokens)
        return stream

    def _open_text(self) -> TokenStream:
        split = "" if not self.divided else "validation" if "val" in self.info.split else "train"
        paths = [piece.path for piece in find_files(self.folder)]
        stream = text.open_stream(paths, replace(self.info, split=split))
        if not stream.num_tokens:
            raise UserError(f"No data for split {self.info.split!r}: the text in {self.folder} is too small to divide.")
        return stream


def _check_counts(told: dict, source: _Source, num_tokens: int) -> None:
    found = {"shards": len(source.files), "tokens": num_tokens}
    if any(told.get(key, count) != count for key, count in found.items()):
        listed = " and ".join(f"{told[key]:,} {key}" for key in found if key in told)
        raise UserError(
            f"{source.folder} holds {found['shards']:,} shards and {num_tokens:,} tokens of the split "
            f"{source.info.split!r}, its {NAME} says {listed}. Files are missing or do not belong there: copy the "
            f"folder again, or, to train on what is there, correct the counts in {source.folder / NAME}."
        )


def _find_all(root: Path, names: Sequence[str], given: StreamInfo) -> dict[str, _Source]:
    """The source of each prefix. Raises UserError where two of them read the same file, which would count twice."""
    found, readers = {name: _find(root, name, given) for name in names}, dict[Path, str]()
    for name, source in found.items() if len(found) > 1 else ():
        for path in source.files or [source.folder]:
            whole = path.resolve()
            # Readers of text are folders, which are read with all that is below them.
            texts = [] if source.files else [p for p in readers if p.is_dir()]
            nested = next((p for p in texts if p in whole.parents or whole in p.parents), whole)
            other = readers.setdefault(nested, name)
            if other != name:
                raise UserError(
                    f"The mixture reads {path} twice, as {other!r} and as {name!r}. Name it once, with the weight that "
                    "it should have."
                )
    return found


def _find(root: Path, name: str, given: StreamInfo) -> _Source:
    """The source of that path prefix below root; "" is root itself."""
    if not os.path.isdir(root):
        is_file = " is a file, not a folder" if os.path.isfile(root) else " does not exist"
        raise NoData(
            f"The data folder {str(root)!r}{is_file}.{near(root)} Give --train_data_dir (or --val_data_dir) {WANTED}"
        )
    folder = root / name
    if folder.is_dir():
        return _find_split(folder, given)
    files = _bins(folder.parent, folder.name)
    if not files:
        raise UserError(
            f"The mixture names {name!r}, but there is no folder {name} and no file {name}*.bin in {root}. "
            f"{_listing(root)}"
        )
    return _token_files(files, given, folder.name)


def _find_split(root: Path, given: StreamInfo) -> _Source:
    folder, prefix = (root / given.split).parent, (root / given.split).name
    for files in (_bins(folder, p, inside) for inside in (False, True) for p in _spellings(prefix)):
        if files:
            return _token_files(files, given, prefix)
    for name in _spellings(prefix):
        if files := _bins(folder / name, ""):
            return _token_files(files, given, prefix)
        if _holds_text(folder / name):
            return _text(folder / name, given, divided=False)
    if _holds_text(folder) and not any(folder.glob("*.bin")):
        return _text(folder, given, divided=True)
    raise NoData(f"No data for split {prefix!r}: no file {prefix}*.bin in {folder}. {_listing(folder)} Give {WANTED}")


def _spellings(prefix: str) -> tuple[str, ...]:
    return ("validation", "val") if prefix == "validation" else (prefix,)


def _bins(folder: Path, prefix: str, inside: bool = False) -> list[Path]:
    """Sorted .bin files whose name starts with the prefix; with `inside`, holds it after a separator."""
    pattern = re.compile((r".*[._-]" if inside else "") + re.escape(prefix))
    return sorted(p for p in folder.glob("*.bin") if pattern.match(p.name) and not p.name.startswith("."))


def _token_files(files: Sequence[Path], given: StreamInfo, prefix: str) -> _Source:
    folder = files[0].parent
    return _Source(folder, files, _override(stream_info(read_meta(folder), folder, prefix), given))


def _override(known: StreamInfo, given: StreamInfo) -> StreamInfo:
    return known if given.eos_id is None else replace(known, eos_id=given.eos_id)


def _holds_text(folder: Path) -> bool:
    return any(text.matches(p) for p in folder.rglob("*"))


def _text(folder: Path, given: StreamInfo, divided: bool) -> _Source:
    tokenizer = load_tokenizer(given.tokenizer)
    known = replace(given, eos_id=tokenizer.eos_id, vocab_size=tokenizer.vocab_size, made_with=given.tokenizer)
    return _Source(folder, (), _override(known, given), divided)


def _listing(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"The folder {folder} holds: {', '.join(names[:12])}{more}." if names else f"{folder} is empty."
