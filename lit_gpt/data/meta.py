"""meta.json: what scripts/prepare_text.py knows about the shards it wrote.

    {"version": 1, "format": "packed", "tokenizer": {"kind": "bytes" or "json", "name": ...},
     "vocab_size": ..., "eos_id": ..., "bos_id": null or id, "dtype": "<u2" or "<i4",
     "splits": {"train": {"tokens": ..., "bytes": ..., "documents": ..., "shards": ...}, ...}}

`tokens` counts everything in the shards, EOS included; `bytes` is UTF-8 text without EOS.
"""

from __future__ import annotations

import json
from pathlib import Path

from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.utils.files import write_text

NAME = "meta.json"
VERSION = 1


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_meta(folder: Path) -> dict | None:
    """The folder's meta.json, None where there is none. Raises UserError when it cannot be used."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text())
        known = meta["version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"Cannot read {path}: {e}. Prepare the data again.") from e
    if not known:
        raise UserError(f"{path} has version {meta['version']}, this program reads version {VERSION}.")
    return meta


def stream_info(meta: dict | None, split: str, tokenizer: str = "bytes") -> StreamInfo:
    """What a folder's meta.json says about the files of one split; nothing is known without one."""
    if meta is None:
        return StreamInfo(split, tokenizer=tokenizer)
    counts = meta["splits"].get(split, {})
    ratio = counts["bytes"] / counts["tokens"] if counts.get("tokens") else None
    return StreamInfo(split, meta["eos_id"], meta["vocab_size"], ratio, tokenizer)
