"""Where the documents of a data set are, one file per kind of source.

A recipe has `find(source, search)`, a list of (split, Piece) whose split is None where documents are
divided by the hash of their key, and `read(piece, options, left)`, the piece's documents; `left` counts
what cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_gpt.registry import Registry

RECIPES = Registry("lit_gpt.data.prepare.recipes", "recipe", "read(piece, options, left)")


@dataclass(frozen=True)
class ReadOptions:
    """text_key: field of a record that holds its text. source_tokenizer: spec, for sources of token ids.

    strict: stop at the first thing that cannot be used.
    """

    text_key: str | None = None
    source_tokenizer: str | None = None
    strict: bool = False
