"""Remote data roots (s3://, gs://, az://, any fsspec protocol), copied into a local cache."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from lit_gpt.errors import UserError


def localise(root: str, cache: Path | None = None) -> Path:
    """A local folder with the contents of `root`; a local path is returned as it is.

    Files land in `cache` (default ~/.cache/scalelab/data, or $SCALELAB_CACHE), each under its final
    name only when complete, and are fetched again only when their size changed.
    Raises UserError when fsspec or the protocol's package is missing, or nothing is there.
    """
    if "://" not in root:
        return Path(root)
    filesystem, base = _connect(root)
    cache = cache or Path(os.environ.get("SCALELAB_CACHE", Path.home() / ".cache/scalelab/data"))
    local = cache / hashlib.blake2b(root.rstrip("/").encode(), digest_size=8).hexdigest()
    try:
        files = filesystem.find(base, detail=True)
    except Exception as e:  # each back end raises its own
        raise UserError(f"Cannot list {root!r}: {type(e).__name__}: {e}.") from e
    if not files:
        raise UserError(f"There are no files under {root!r}. Check the address and your credentials.")
    for remote, info in files.items():
        _fetch(filesystem, remote, info["size"], local / os.path.relpath(remote, base))
    return local


def _connect(root: str):
    try:
        import fsspec

        return fsspec.core.url_to_fs(root)
    except ImportError as e:
        raise UserError(
            f"Reading {root!r} needs fsspec and the protocol's package ({e}): pip install 'scalelab[cloud]'."
        ) from e
    except Exception as e:  # each back end raises its own
        raise UserError(f"Cannot open {root!r}: {type(e).__name__}: {e}.") from e


def _fetch(filesystem, remote: str, size: int, path: Path) -> None:
    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        filesystem.get_file(remote, str(temporary))
        os.replace(temporary, path)
    except Exception as e:  # each back end raises its own
        raise UserError(f"Cannot download {remote}: {type(e).__name__}: {e}.") from e
    finally:
        temporary.unlink(missing_ok=True)
