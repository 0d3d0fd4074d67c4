"""The .bin of llm.c and modded-nanogpt: a header of 256 int32, then the tokens.

header[0] is a magic number that implies the token type, header[1] the version,
header[2] the number of tokens. Source: llm.c, dev/data/data_common.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.data.stream import FileStream, Segment, StreamInfo
from lit_gpt.errors import UserError

HEADER_BYTES = 256 * 4
# magic -> (version, token type); GPT-2 files and Llama-3 files
KINDS = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}


def matches(path: Path) -> bool:
    """True when the first int32 is one of the magic numbers."""
    with open(path, "rb") as f:
        return int.from_bytes(f.read(4), "little") in KINDS


def _segment(path: Path) -> Segment:
    with open(path, "rb") as f:
        magic, version, count = (int.from_bytes(f.read(4), "little") for _ in range(3))
    known, dtype = KINDS[magic]
    expected, size = HEADER_BYTES + count * dtype.itemsize, path.stat().st_size
    if version != known or size != expected:
        raise UserError(
            f"Corrupt llm.c file {path}: version {version} with {count} tokens and {size} bytes; "
            f"expected version {known} and {expected} bytes."
        )
    return Segment(path, HEADER_BYTES, dtype, count)


def open_stream(paths: Sequence[Path], info: StreamInfo) -> FileStream:
    """All files as one stream. Raises UserError when a header and its file disagree."""
    return FileStream([_segment(path) for path in paths], info)
