"""Remote data roots (s3://, gs://, az://, any fsspec protocol), copied into a local cache."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path
from typing import Any

from lit_gpt.data.formats.text import LIMIT_BYTES
from lit_gpt.data.kinds import DATA_SUFFIXES, suffixes
from lit_gpt.data.meta import NAME
from lit_gpt.errors import UserError
from lit_gpt.utils.files import NO_ROOM, not_written

LOCAL = ("file://", "local://")
BESIDE = (NAME, "tokenizer.json", "tokenizer_config.json")  # what is fetched with token files
TOKENS = (".bin", ".idx")  # how the names of token files end; .idx is Megatron's index


class NoData(UserError):
    """There is no data where it was asked for, or no way to get at it: a Plan can be made without it."""


def is_remote(root: str) -> bool:
    """Whether a data root has to be copied before it can be read."""
    return "://" in root and not root.startswith(LOCAL)


def local_path(root: str) -> Path:
    """The folder of a local root, which may be written as file:// or file://localhost/ (RFC 8089). Raises UserError."""
    path = re.sub(r"^(file://(localhost(?=/))?|local://)", "", root)
    if not path:
        raise UserError(f"{root!r} names no folder. Type one behind it, such as file:///home/me/data.")
    return Path(path)


def fetch(root: str, cache: Path | None = None, tokens: bool = True) -> Path:
    """A local folder with the data files under a remote root: token files and what belongs to them, or text.

    tokens: False leaves out the token files.
    Files land in `cache` (default $SCALELAB_CACHE, else ~/.cache/scalelab/data), in a folder that is named by a hash
    of the address. A file gets its final name when it is complete, and is fetched again only when its size changed
    (departure D71).
    Raises NoData, before anything is copied, when fsspec or the protocol's package is missing, or no
    data is there.
    """
    filesystem, base = _connect(root)
    cache = cache or Path(os.environ.get("SCALELAB_CACHE", Path.home() / ".cache/scalelab/data"))
    local = cache / hashlib.blake2b(root.rstrip("/").encode(), digest_size=8).hexdigest()
    try:
        files = filesystem.find(base, detail=True)
    except Exception as e:  # each back end raises its own
        raise NoData(f"Cannot list {root!r}: {type(e).__name__}: {e}.") from e
    for remote, info in _data(files, root).items():
        if tokens or not remote.endswith(TOKENS):
            _fetch(filesystem, remote, info["size"], local / os.path.relpath(remote, base))
    return local


def _data(files: dict[str, dict[str, Any]], root: str) -> dict[str, dict[str, Any]]:
    """The files among them that are data."""
    if not files:
        raise NoData(f"There are no files under {root!r}. Check the address and your credentials.")
    shards = {name: info for name, info in files.items() if name.endswith(TOKENS)}
    if shards:
        return shards | {name: info for name, info in files.items() if os.path.basename(name) in BESIDE}
    texts = {name: info for name, info in files.items() if suffixes(name)[0] in DATA_SUFFIXES}
    if not texts:
        some = ", ".join(sorted(os.path.basename(name) for name in files)[:5])
        raise NoData(
            f"No data under {root!r}: none of its {len(files):,} files ({some}, ...) is a .bin file or text. "
            "Give the folder of token files."
        )
    if (total := sum(info["size"] for info in texts.values())) > LIMIT_BYTES:
        raise NoData(
            f"{root!r} holds {total:,} bytes of text; up to {LIMIT_BYTES:,} are tokenised on the fly. "
            "Prepare it once with scripts/prepare_text.py, and give the folder that it wrote."
        )
    return texts


def _connect(root: str):
    try:
        import fsspec

        return fsspec.core.url_to_fs(root)
    except ImportError as e:
        raise NoData(
            f"Reading {root!r} needs fsspec and the protocol's package ({e}): pip install 'scalelab[cloud]'."
        ) from e
    except Exception as e:  # each back end raises its own
        raise NoData(f"Cannot open {root!r}: {type(e).__name__}: {e}.") from e


def _fetch(filesystem, remote: str, size: int, path: Path) -> None:
    if path.is_file() and path.stat().st_size == size:
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(remote, str(temporary))
        os.replace(temporary, path)
    except Exception as e:  # each back end raises its own
        if isinstance(e, OSError) and e.errno in NO_ROOM:
            raise not_written(e, path) from e
        raise NoData(f"Cannot download {remote}: {type(e).__name__}: {e}.") from e
    finally:
        temporary.unlink(missing_ok=True)
