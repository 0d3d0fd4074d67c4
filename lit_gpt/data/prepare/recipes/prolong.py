"""ProLong-64K: Mosaic streaming (MDS) folders of Llama-3 token ids, decoded and tokenised again.

A sample is 65,536 ids; its `indices` say which stretches are separate documents. Their BOS and
EOS are taken off and the new tokenizer's EOS is put on, as for any document. Subsets with weights of
their own are prepared into folders of their own and named in a mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lit_gpt.data.documents import Document, Search
from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.prepare.recipes import ReadOptions
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.errors import UserError


def find(source: Path, search: Search) -> list[tuple[str | None, Piece]]:
    """One piece per MDS folder (a folder with an index.json). Raises UserError when there is none."""
    folders = sorted(p.parent for p in source.rglob("index.json"))
    leaves = [f for f in folders if any(f.glob("*.mds*"))]
    if not leaves:
        raise UserError(f"No MDS folder (index.json beside *.mds files) under {str(source)!r}.")
    sizes = [sum(p.stat().st_size for p in f.glob("*.mds*")) for f in leaves]
    keys = [f.relative_to(source).as_posix() for f in leaves]
    return [(None, Piece(f, key, size)) for f, key, size in zip(leaves, keys, sizes)]


def read(piece: Piece, options: ReadOptions, left: LeftOut) -> Iterator[Document]:
    """The documents of one MDS folder, as text. Raises UserError without mosaicml-streaming or tokenizer."""
    try:
        from streaming import StreamingDataset  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError("The recipe prolong reads MDS shards: pip install mosaicml-streaming, then run again.") from e
    if options.source_tokenizer is None:
        raise UserError(
            "The recipe prolong decodes token ids: give --source_tokenizer PATH, the folder of the tokenizer they "
            "were made with (Llama-3)."
        )
    tokenizer = _tokenizer(options.source_tokenizer)
    special = {tokenizer.eos_id, tokenizer.bos_id}
    for number, sample in enumerate(StreamingDataset(local=str(piece.path), shuffle=False, batch_size=1)):
        ids = sample["input_ids"].tolist()
        for start, end in sample.get("indices", [(0, len(ids))]):
            text = tokenizer.decode([i for i in ids[start:end] if i not in special])
            yield Document(f"{piece.key}@{number}.{start}", text)


_tokenizer = lru_cache(1)(load_tokenizer)
