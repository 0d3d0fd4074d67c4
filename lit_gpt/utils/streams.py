"""Standard output and error that may fail: a full disk under the log, or a `tee` that Ctrl-C ended, end no run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

OURS = Path(__file__).resolve().parents[1]


class Unfailing:
    """A text stream that raises nothing when it cannot be written; `failure` keeps the first reason."""

    def __init__(self, stream: TextIO):
        self.stream, self.failure = stream, None

    def write(self, text: str) -> int:
        """All of it, or as much as the system takes."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As far as the system takes it."""
        self._try(self.stream.flush)

    def _try(self, work: Any, *args: Any) -> None:
        try:
            work(*args)
        except OSError as error:
            self.failure = self.failure or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_unfailing() -> None:
    """Both streams of this process, for good."""
    sys.stdout, sys.stderr = (stream and Unfailing(stream) for stream in (sys.stdout, sys.stderr))


def make_warnings_plain() -> None:
    """Warnings of this package are a sentence, for good; those of others keep the line of code that they are from."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *where: Any) -> str:
        ours = Path(filename).resolve().is_relative_to(OURS)
        return f"warning: {message}\n" if ours else usual(message, category, filename, *where)

    warnings.formatwarning = plain


def lost_output() -> str:
    """Why stdout has not all that was printed; "" where it has, and where its reader had enough, such as `head`."""
    if sys.stdout:
        sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    return "" if failure is None or isinstance(failure, BrokenPipeError) else str(failure.strerror or failure)
