"""What the tools' command lines share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_gpt.errors import EXIT_BAD_INPUT, UserError


def run_tool(main: Callable[[list[str]], int]) -> NoReturn:
    """Exit with what main(argv) returns; a UserError is one message on stderr and exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def parser_for(name: str, description: str, **options: Any) -> ArgumentParser:
    """An empty parser of `python -m lit_gpt.tools.<name>`."""
    return ArgumentParser(prog=f"python -m lit_gpt.tools.{name}", description=description, **options)


def aligned(rows: Sequence[Sequence[str]], *, indent: int = 0, right: Collection[int] = ()) -> str:
    """Rows of cells as lines with aligned columns; `right`: columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
