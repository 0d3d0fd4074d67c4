"""Which tokenizer the ids of data come from: sources of one run must agree on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_gpt.data.meta import read_meta
from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.utils.files import stamp

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Origin:
    """A tokenizer as far as the data tells.

    name, size: for people. described: all that meta.json says. vocabulary: hash of its tokens and their
    ids, None where the data has no tokenizer.json.
    """

    name: str
    size: int | None
    described: str
    vocabulary: str | None

    def __str__(self) -> str:
        size = "" if self.size is None else f" of {self.size:,} tokens"
        return f"{self.name!r}{size}" + (f" ({self.vocabulary[:8]})" if self.vocabulary else "")

    def differs(self, other: Origin) -> bool:
        """By the vocabularies where both are known: names are those of folders."""
        if self.vocabulary and other.vocabulary:
            return self.vocabulary != other.vocabulary
        return (self.described, self.size) != (other.described, other.size)


BYTES = Origin("bytes", None, "bytes", None)


def origin(info: StreamInfo) -> Origin | None:
    """The tokenizer that a stream's ids come from, None where nothing says."""
    if info.made_with is None:
        return None
    path = Path(info.made_with)
    said = (read_meta(path) or {}).get("tokenizer", {}) if path.is_dir() else {}
    if "bytes" in (info.made_with, said.get("kind")):
        return BYTES
    file = path / TOKENIZER if path.is_dir() else path
    known = _vocabulary(tokenizer_json(file)) if file.is_file() else None
    return Origin(str(said.get("name", path.name)), info.vocab_size, json.dumps(said, sort_keys=True), known)


def agree(sources: Sequence[tuple[str, StreamInfo]]) -> StreamInfo:
    """What all sources have in common. sources: (name, what is known of it).

    Raises UserError, naming two of them, for different tokenizers, EOS ids or vocabulary sizes.
    What is not known of a source does not count.
    """
    made = [(name, found, info) for name, info in sources if (found := origin(info)) is not None]
    for name, found, _ in made[1:]:
        if made[0][1].differs(found):
            raise UserError(
                f"The data was made with different tokenizers: {made[0][0]} with {made[0][1]}, {name} with {found}. "
                "Data of one run, validation included, must be prepared with the same tokenizer."
            )
    return StreamInfo(
        eos_id=_agreed("EOS id", [(name, info.eos_id) for name, info in sources]),
        vocab_size=_agreed("vocabulary size", [(name, info.vocab_size) for name, info in sources]),
        made_with=made[0][2].made_with if len(made) == len(sources) > 0 else None,
    )


def _agreed(what: str, values: Sequence[tuple[str, int | None]]) -> int | None:
    known = {value for _, value in values if value is not None}
    if len(known) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in values)
        raise UserError(
            f"The data sources disagree on the {what} ({listed}). Sources of one run must be prepared "
            "with the same tokenizer."
        )
    return known.pop() if known else None


def tokenizer_json(path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json. Raises UserError when it is none. One is kept: Llama-3's takes 0.2 s to read."""
    return _read(path, *stamp(path))


@lru_cache(2)
def _read(path: Path, *_: int) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        token_ids(found)
    except PermissionError as e:
        raise UserError(f"{path} cannot be used: {e.strerror}. Permit it, or give other data.") from e
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"Cannot read the tokenizer {path}: {e!r}. Put back the one that made the data.") from e
    return found


def token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Token -> id, added tokens included. A Unigram model numbers its (token, score) pairs in order."""
    vocab = tokenizer["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
    return {**ids, **{added["content"]: added["id"] for added in tokenizer.get("added_tokens") or []}}


def _vocabulary(tokenizer: dict[str, Any]) -> str:
    """Hash of tokens and ids. Not of the file: libraries write one tokenizer in several ways."""
    pairs = sorted(token_ids(tokenizer).items())
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=12).hexdigest()
