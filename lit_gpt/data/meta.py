"""meta.json: what is known about the token files beside it.

    {"version": 1, "format": "packed", "tokenizer": {"kind": "bytes" or "json", "name": ...},
     "vocab_size": ..., "eos_id": ..., "bos_id": null or id, "dtype": "<u2" or "<i4",
     "splits": {"train": {"tokens": ..., "bytes": ..., "documents": ..., "shards": ...}, ...}}

scripts/prepare_text.py writes all of it. One written by hand, beside files without a header, may
hold any part: {"dtype": "uint32", "vocab_size": 128256}. `tokens` counts everything in the shards, EOS
included; `bytes` is UTF-8 text without EOS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular, write_text

NAME = "meta.json"
VERSION = 1


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON; the file appears or is replaced as a whole."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_meta(folder: Path) -> dict | None:
    """The folder's meta.json, None where there is none. Raises UserError when it cannot be used."""
    path = folder / NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        meta = json.loads(regular(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"Cannot read {path}: {e}. Prepare the data again, or remove it.") from e
    if not isinstance(meta, dict):
        raise UserError(f"{path} is not a JSON object such as {EXAMPLE}. Prepare the data again, or remove it.")
    if (version := meta.get("version", VERSION)) != VERSION:
        raise UserError(f"{path} has version {version!r}, this program reads version {VERSION}.")
    for key, (fits, what) in KEYS.items():
        if key in meta and not fits(meta[key]):
            raise UserError(f"{path}: {key} is {json.dumps(meta[key])[:100]}, it must be {what}. Correct it.")
    return meta


def stream_info(meta: dict | None, folder: Path, split: str) -> StreamInfo:
    """What a folder's meta.json and tokenizer.json say about the files of one split; all is None without them."""
    meta = meta or {}
    made_with = str(folder) if "tokenizer" in meta or (folder / "tokenizer.json").is_file() else None
    return StreamInfo(split, meta.get("eos_id"), meta.get("vocab_size"), made_with=made_with, dtype=meta.get("dtype"))


EXAMPLE = '{"dtype": "uint32", "vocab_size": 128256}'


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _integer_type(value: Any) -> bool:
    try:
        return isinstance(value, str) and np.dtype(value).kind in "iu"
    except (TypeError, ValueError, SyntaxError):
        return False


def _tokenizer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str)


def _splits(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(counts, dict) for counts in value.values()):
        return False
    return all(_whole(0)(counts.get(key, 0)) for counts in value.values() for key in ("tokens", "shards"))


# key -> (whether a value fits, what fits in words)
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: isinstance(value, str), "the name of a data format"),
    "tokenizer": (_tokenizer, 'an object such as {"kind": "json", "name": "gpt2"}'),
    "vocab_size": (_whole(1), "a whole number, 1 or larger"),
    "eos_id": (lambda value: value is None or _whole(0)(value), "a token id or null"),
    "dtype": (_integer_type, 'the name of an integer type, such as "uint16" or "uint32"'),
    "splits": (_splits, 'an object such as {"train": {"tokens": 1000, "shards": 1}}'),
}
