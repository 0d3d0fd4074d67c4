"""Passages of documents that a model was not trained on, as text that has the same tokens again.

A passage is one document's text, at most `length` tokens of it: a longer document is cut into several. Passages whose
tokens do not spell their text one by one are left out, since a place in them has no token of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np

from lit_gpt.data.stream import TokenStream
from lit_gpt.data.tokenizer import Tokenizer
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Passage:
    """document: its number. text: the decoded tokens. ends: characters up to the end of each token."""

    document: int
    text: str
    ends: tuple[int, ...]

    def token_at(self, place: int) -> int:
        """The number of the token that the character at `place` is in."""
        return bisect_right(self.ends, place)


def documents(streams: list[TokenStream], eos_id: int, bos_id: int | None = None) -> Iterator[np.ndarray]:
    """The tokens of each document, without those that end and start it.

    The last one of a stream is left out where nothing ends it. Raises UserError where no document ends at all.
    """
    found = False
    for stream in streams:
        ids = stream.read(0, stream.num_tokens)  # validation data is small
        start = 0
        for end in np.flatnonzero(ids == eos_id).tolist():
            tokens = ids[start:end]
            start, found = end + 1, True
            if len(tokens := tokens[tokens != bos_id] if bos_id is not None else tokens):
                yield tokens
    if not found:
        raise UserError(f"The data has no token {eos_id}, which ends a document. Prepare it with prepare_text.py.")


def passages(streams: list[TokenStream], tokenizer: Tokenizer, length: int, bos_id: int | None = None) -> list[Passage]:
    """The passages of all documents, in order. Raises UserError where documents have no end."""
    assert tokenizer.eos_id is not None, "the caller checks it"
    found, piece = [], cache(lambda i: tokenizer.decode([i]))
    for number, ids in enumerate(documents(streams, tokenizer.eos_id, bos_id)):
        for start in range(0, len(ids), length):
            tokens = ids[start : start + length].tolist()
            text, pieces = tokenizer.decode(tokens), [piece(i) for i in tokens]
            if "".join(pieces) == text:
                found.append(Passage(number, text, tuple(accumulate(map(len, pieces)))))
    return found
