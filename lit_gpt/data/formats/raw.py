"""nanoGPT's format: uint16 token ids and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.data.stream import FileStream, Segment, StreamInfo
from lit_gpt.errors import UserError

NAME = "raw"
FALLBACK = True


def matches(path: Path) -> bool:
    """True for any .bin file: the format has no mark of its own."""
    return path.suffix == ".bin"


def open_stream(paths: Sequence[Path], info: StreamInfo) -> FileStream:
    """All files as one stream. Raises UserError for a file of an odd number of bytes."""
    odd = [str(p) for p in paths if p.stat().st_size % 2]
    if odd:
        raise UserError(
            f"{odd[0]} has an odd number of bytes and no known header, so it is not a file of uint16 tokens. "
            "It is corrupt or of another format."
        )
    return FileStream([Segment(p, 0, np.dtype("<u2"), p.stat().st_size // 2) for p in paths], info)
