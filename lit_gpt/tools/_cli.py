"""What the tools' command lines share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError

QUANTIZED = ("int8", "int4", "fp8")  # what convert --quantize makes, in _quantize


class LeftOut:
    """Says on stderr what is left out as damaged. code: what a tool ends with that goes on without it, 0 if nothing."""

    code = 0

    def __call__(self, error: UserError) -> None:
        print(f"error: left out: {error}", file=sys.stderr)
        self.code = self.code or error.code


def local_path(given: str | Path) -> Path:
    """The type of an option that is a file or folder of this machine; ~ is the home folder.

    Raises UserError for an empty one, and for an address of remote storage.
    """
    text = str(given)  # jsonargparse checks its own results once more
    if not text.strip() or "\0" in text:
        raise UserError(f"The path {text!r} is no name. Give a file or folder.")
    if "://" in text:
        raise UserError(f"{text} is an address, and this tool works on files of this machine. Give a local path.")
    return Path(text).expanduser()


def check_given(values: Any, *but: str) -> None:
    """Raises UserError for an option that was given nothing, "", which often is a variable of a shell without a value.

    but: options that may be empty texts.
    """
    for name, value in vars(values).items():
        if value == "" and name not in but:
            raise UserError(f"--{name} is empty. Give it a value, or leave it out.")


def parser_for(name: str, description: str, examples: Sequence[tuple[str, str]] = (), **options: Any) -> Parser:
    """An empty parser of `python -m lit_gpt.tools.<name>`. examples: what is typed behind it, and what that does."""
    command = f"python -m lit_gpt.tools.{name}"
    parser = Parser(prog=command, description=description, **options)
    parser.examples = [(f"{command} {typed}", does) for typed, does in examples]
    return parser
