"""How many bytes of text a token stands for, for bits per byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.model import IGNORE
from lit_gpt.data.meta import read_meta
from lit_gpt.data.origin import BYTES, TOKENIZER, origin, token_ids, tokenizer_json
from lit_gpt.data.stream import StreamInfo

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's letter for a space
BYTE_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # that of byte-level BPE (GPT-2)
BYTE = re.compile("<0x[0-9A-F]{2}>")  # SentencePiece's token for a byte that it has no character for
# What only rewrites spaces, and NFC, which few texts are not in already.
NORMALIZERS = {"Sequence", "Prepend", "Replace", "NFC"}
DECODERS = {"Sequence", "ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
DROPPING = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}  # pre-tokenizers that lose text


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of UTF-8 text per token id.

    inside: float64 (V + 1,), NaN where it cannot be known, and in the last place, for larger ids.
    first: the same at the start of a document, where a space may be the tokenizer's own.
    boundaries: ids that end or start a document; they stand for no text.
    """

    inside: np.ndarray
    first: np.ndarray
    boundaries: tuple[int, ...]

    def of(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bytes of each target, float64, 0 where it is IGNORE. tokens: what is before each target, the same shape."""
        ids = np.where(targets == IGNORE, 0, np.minimum(targets, len(self.inside) - 1))
        counts = np.where(np.isin(tokens, self.boundaries), self.first[ids], self.inside[ids])
        return np.where(targets == IGNORE, 0.0, counts)


def token_bytes(info: StreamInfo) -> TokenBytes | None:
    """The table of the tokenizer that a stream's ids come from; None where the bytes cannot be known.

    That is so without a tokenizer beside the data, and for one that changes or drops text.
    """
    made = origin(info)
    if made is None or info.made_with is None:
        return None
    path = Path(info.made_with)
    bos_id = (read_meta(path) or {}).get("bos_id") if path.is_dir() else None
    boundaries = tuple(i for i in (info.eos_id, bos_id) if i is not None)
    if made == BYTES:
        inside = np.ones(257 + 1)
        inside[-1] = np.nan
        return _table(inside, inside.copy(), boundaries)
    file = path / TOKENIZER if path.is_dir() else path
    return _of_json(tokenizer_json(file), boundaries) if made.vocabulary else None


def _table(inside: np.ndarray, first: np.ndarray, boundaries: tuple[int, ...]) -> TokenBytes:
    inside[list(boundaries)] = first[list(boundaries)] = 0.0
    return TokenBytes(inside, first, boundaries)


def _of_json(tokenizer: dict[str, Any], boundaries: tuple[int, ...]) -> TokenBytes | None:
    decoders, normalizers, before = (_parts(tokenizer.get(k)) for k in ("decoder", "normalizer", "pre_tokenizer"))
    if not _lossless(decoders, normalizers, before):
        return None
    ids, model = token_ids(tokenizer), tokenizer["model"]
    byte_level = any(part["type"] == "ByteLevel" for part in decoders)
    fallback = any(part["type"] == "ByteFallback" for part in decoders)
    added = {token["content"] for token in tokenizer.get("added_tokens") or []}
    inside = np.full(max(*ids.values(), *boundaries, 0) + 2, np.nan)
    first = inside.copy()
    space = BYTE_SPACE if byte_level else SPACE
    own_space = _prepends(normalizers, before)
    for token, i in ids.items():
        plain = token in added
        if byte_level and not plain:
            inside[i] = len(token)  # a letter a byte
        elif fallback and BYTE.fullmatch(token):
            inside[i] = 1
        else:
            inside[i] = len((token if plain else token.replace(SPACE, " ")).encode())
        first[i] = inside[i] - (own_space and not plain and token.startswith(space))
    unknown = model.get("unk_token"), model.get("unk_id")
    for i in {ids.get(unknown[0], -1), -1 if unknown[1] is None else unknown[1]}:
        inside[i] = first[i] = np.nan
    return _table(inside, first, boundaries)


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder, and those that it is a sequence of."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders") or []
    return [part, *(p for i in inner for p in _parts(i))]


def _lossless(decoders: list[dict], normalizers: list[dict], before: list[dict]) -> bool:
    """Whether the tokens of a text are the text, but for spaces that are known."""
    rewrites = [p for p in normalizers if p["type"] == "Replace" and p.get("pattern") != {"String": " "}]
    removes = [p for p in before if p["type"] in DROPPING or p.get("behavior") == "Removed"]
    removes += [p for p in (*before, *decoders) if p.get("replacement", SPACE) != SPACE]
    known = {p["type"] for p in decoders} <= DECODERS and {p["type"] for p in normalizers} <= NORMALIZERS
    return bool(decoders) and known and not rewrites and not removes


def _prepends(normalizers: list[dict], before: list[dict]) -> bool:
    """Whether a document gets a space in front that is not in its text."""
    return any(
        p["type"] == "Prepend"
        or (p["type"] == "Metaspace" and p.get("prepend_scheme", "always") != "never")
        or (p["type"] == "ByteLevel" and p.get("add_prefix_space", False))
        for p in (*normalizers, *before)
    )
