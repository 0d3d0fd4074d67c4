"""Which tools there are: python -m lit_gpt.tools"""

from __future__ import annotations

import ast
from pathlib import Path

from lit_gpt.config.command import run_command
from lit_gpt.tools._cli import Parser
from lit_gpt.utils.text import aligned


def listing() -> str:
    """A line for each tool: what to type, and what it is for by the first line of its file."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    first = [(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0] for file in files]
    return aligned([(f"python -m lit_gpt.tools.{file.stem}", says) for file, says in zip(files, first)])


def main(argv: list[str]) -> None:
    """Print the list."""
    Parser(prog="python -m lit_gpt.tools", description="List the tools.").parse_args(argv)
    print(listing())


if __name__ == "__main__":
    run_command(main)
