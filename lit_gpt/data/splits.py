"""Which documents are training and which are validation: by the hash of their key, so the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from lit_gpt.data.documents import Document


def key_hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


class Splitter:
    """Assigns documents to "train" or "validation" by the hash of their key.

    keys: of the documents; read only until each split has one. Where the hash gives one of the two none, it
    gets the nearest document. fraction: of the documents that are validation.
    divisible: a lone document gives its last characters to validation; else it is all training.

    count: keys that were read, so 0 when there is no document.
    """

    def __init__(self, keys: Iterable[str], fraction: float, divisible: bool = False):
        self.fraction, self.count = fraction, 0
        low, high = 1.0, 0.0
        for key in keys:
            self.count += 1
            low, high = min(low, key_hash(key)), max(high, key_hash(key))
            if low < fraction <= high or fraction <= 0:
                break
        self.cut = divisible and self.count == 1
        self.held_out = low if low >= fraction and self.count > 1 else None
        self.kept = high if high < fraction else None

    def __call__(self, document: Document) -> list[tuple[str, str]]:
        """[(split, text)] of one document: one entry, or two for a lone file."""
        text, own = document.text, key_hash(document.key)
        if self.fraction <= 0:
            return [("train", text)]
        if self.cut:
            cut = len(text) - max(int(len(text) * self.fraction), min(1, len(text) - 1))
            return [("train", text[:cut]), ("validation", text[cut:])]
        held_out = own == self.held_out or (own < self.fraction and own != self.kept)
        return [("validation" if held_out else "train", text)]
