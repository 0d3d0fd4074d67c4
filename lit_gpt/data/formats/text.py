"""A folder of text, JSON records or parquet, tokenised in memory when it is opened.

For small sets: every rank tokenises all of it. Prepare larger ones with scripts/prepare_text.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lit_gpt.data.codec import Unusable
from lit_gpt.data.documents import Document, looked_at, read_documents
from lit_gpt.data.kinds import TEXT_SUFFIXES, Piece, key_of, look, suffixes
from lit_gpt.data.left_out import LeftOut, sentences
from lit_gpt.data.splits import Splitter
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.data.tokenizer import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError

# More is to be prepared once: every rank tokenises all of the text at every start, and holds the ids in memory.
LIMIT_BYTES = 256 * 2**20
# Of the documents, where no folder is called validation. It is more than the 0.5% of scripts/prepare_text.py, because
# in a small set a larger share is needed for a loss that says something.
VALIDATION_FRACTION = 0.05


def matches(path: Path) -> bool:
    """True for records and parquet under any name but those of token files, and for text under one of TEXT_SUFFIXES."""
    try:
        if path.suffix in (".bin", ".idx") or not path.is_file():
            return False
        return look(path).form != "text" or suffixes(path.name)[0] in TEXT_SUFFIXES
    except (Unusable, OSError):
        return False


def open_stream(paths: Sequence[Path], info: StreamInfo) -> ArrayStream:
    """The documents of `info.split`, each followed by EOS, as one stream.

    About 5% of the documents are validation, by the hash of their path; with an empty split the
    stream has all of them. Raises UserError above 256 MiB of files.
    """
    root = Path(paths[0]).parent if len(paths) == 1 else _common(paths)
    pieces = [looked_at(Piece(p, key_of(p.relative_to(root).as_posix()), p.stat().st_size)) for p in paths]
    total = sum(p.size for p in pieces)
    _check_size(total, root)
    tokenizer = load_tokenizer(info.tokenizer)
    eos_id = tokenizer.eos_id if info.eos_id is None else info.eos_id
    tokens = _tokenise(_read(pieces, root), pieces, info.split, tokenizer, eos_id)
    return ArrayStream(tokens, replace(info, eos_id=eos_id, vocab_size=tokenizer.vocab_size))


def _common(paths: Sequence[Path]) -> Path:
    common = Path(paths[0]).parent
    while not all(p.is_relative_to(common) for p in paths):
        common = common.parent
    return common


def _tokenise(
    documents: Sequence[Document], pieces: Sequence[Piece], split: str, tokenizer: Tokenizer, eos_id: int | None
) -> np.ndarray:
    """The tokens of the split."""
    divisible = [p.key for p in pieces] == [d.key for d in documents]  # records have keys of their own
    splitter = Splitter((d.key for d in documents), VALIDATION_FRACTION if split else 0.0, divisible)
    parts = [np.empty(0, np.int32)]
    for document in documents:
        for name, text in splitter(document):
            if name == (split or "train") and text:
                ids = tokenizer.encode(text) + ([] if eos_id is None else [eos_id])
                parts.append(np.array(ids, np.int32))
    return np.concatenate(parts)


def _check_size(size: int, root: Path) -> None:
    if size > LIMIT_BYTES:
        raise UserError(
            f"{str(root)!r} holds {size:,} bytes of text or more; up to {LIMIT_BYTES:,} are tokenised on the fly. "
            f"Prepare it once: python scripts/prepare_text.py --source {root} --output DIR"
        )


def _read(pieces: Sequence[Piece], root: Path) -> list[Document]:
    """Every document; what cannot be used is a warning. Compressed files may hold much more than their length."""
    left, documents, size = LeftOut(), list[Document](), 0
    for document in (document for piece in pieces for document in read_documents(piece, left=left)):
        documents.append(document)
        _check_size(size := size + len(document.text), root)
    if left.counts:
        warnings.warn("Of the text: " + "; ".join(sentences(left.placed({p.key: p for p in pieces}))), stacklevel=2)
    return documents
