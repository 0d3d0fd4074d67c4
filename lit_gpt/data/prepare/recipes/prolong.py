"""ProLong-64K: MDS shards of Llama-3 token ids, decoded and tokenised again.

A sample is 65,536 ids; its `indices` say which stretches are separate documents. Their BOS and
EOS are taken off and the new tokenizer's EOS is put on, as for any document. Subsets with weights of
their own are prepared into folders of their own and named in a mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lit_gpt.data import mds
from lit_gpt.data.codec import Unusable
from lit_gpt.data.documents import Document, Search
from lit_gpt.data.kinds import Piece, suffixes
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.prepare.recipes import ReadOptions
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.errors import UserError


def find(source: Path, search: Search) -> list[tuple[str | None, Piece]]:
    """One piece per shard: the file, or every *.mds below the folder, compressed or not. Raises UserError for none."""
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*.mds*") if suffixes(p.name)[0] == ".mds")
    if not paths:
        raise UserError(f"No MDS shard (a file *.mds) under {str(source)!r}. Give the folder that holds them.")
    folder = source.parent if source.is_file() else source
    return [(None, Piece(p, p.relative_to(folder).as_posix(), p.stat().st_size)) for p in paths]


def read(piece: Piece, options: ReadOptions, left: LeftOut) -> Iterator[Document]:
    """The documents of one shard, as text. Raises UserError without the tokenizer that its ids were made with."""
    if options.source_tokenizer is None:
        raise UserError(
            "The recipe prolong decodes token ids: give --source_tokenizer PATH, the folder of the tokenizer they "
            "were made with (Llama-3)."
        )
    tokenizer = _tokenizer(options.source_tokenizer)
    special = {tokenizer.eos_id, tokenizer.bos_id}
    try:
        for number, sample in enumerate(mds.arrays(piece.path)):
            if "input_ids" not in sample:
                raise Unusable("no column input_ids")
            ids = sample["input_ids"].tolist()
            for start, end in sample.get("indices", [(0, len(ids))]):
                text = tokenizer.decode([i for i in ids[start:end] if i not in special])
                yield Document(f"{piece.key}@{number}.{start}", text)
    except Unusable as e:
        left.add("files", f"not read to its end: {e}", piece)


_tokenizer = lru_cache(1)(load_tokenizer)
