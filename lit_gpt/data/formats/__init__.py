"""Token file formats, one file each: `matches(path)` and `open_stream(paths, info)`.

`matches` looks into the file. A format with FALLBACK = True carries no mark of its
own and is only tried when no other format matches the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_gpt.data.stream import StreamInfo, TokenStream
from lit_gpt.errors import UserError
from lit_gpt.registry import Registry
from lit_gpt.utils.files import regular

FORMATS = Registry("lit_gpt.data.formats", "data format", "open_stream(paths, info)")


def detect(path: Path) -> str:
    """The name of the format of one file. Raises UserError when no format matches it or it cannot be read."""
    for name in sorted(FORMATS.names(), key=lambda name: getattr(FORMATS.load(name), "FALLBACK", False)):
        if FORMATS.load(name).matches(regular(path)):
            return name
    raise UserError(f"{path} is in none of the data formats {', '.join(FORMATS.names())}.")


def open_files(paths: Sequence[Path], info: StreamInfo, expected: str | None = None) -> TokenStream:
    """One stream over files of one format, in sorted order.

    expected: the format the folder's meta.json names, when it has one.
    Raises UserError for corrupt files, files of several formats and files that cannot be read.
    """
    try:
        found = {path: detect(path) for path in sorted(paths)}
        wanted = expected or next(iter(found.values()))
        odd = [f"{p.name} ({name})" for p, name in found.items() if name != wanted]
        if odd:
            raise UserError(
                f"Expected only files of the format {wanted!r} in {paths[0].parent}, found {', '.join(odd[:5])}. "
                "A file of another format is either corrupt or belongs elsewhere: remove it or write it again."
            )
        return FORMATS.load(wanted).open_stream(list(found), info)
    except OSError as e:
        raise UserError(f"Cannot read {e.filename}: {e.strerror}.") from e
