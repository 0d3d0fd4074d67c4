"""The pages of the documentation, and their code blocks.

A block that no test can run says why in a comment on the line above it: <!-- not run: needs a cluster -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
LANGUAGES = ("bash", "python", "yaml", "json", "text")  # text is what a program prints
FENCE = re.compile(r"^(?:<!-- not run:?(?P<reason>[^\n]*)-->\n+)?(?P<indent> *)```(?P<language>\w*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. line: where its text starts in the page. reason: why it is not run; None where it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """The path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order; without languages, all of them."""
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    while start := FENCE.search(text, end):
        close = re.compile(rf"^{start['indent']}```$", re.MULTILINE).search(text, start.end())
        assert close is not None, f"{name(page)}: a block that starts with {start[0]!r} does not end"
        body, end = text[start.end() : close.start()], close.end()
        reason = None if start["reason"] is None else start["reason"].strip()
        found.append(Block(page, text.count("\n", 0, start.end()) + 1, start["language"], body, reason))
    return [block for block in found if not languages or block.language in languages]


def commands(page: Path) -> list[str]:
    """The commands of the bash blocks of a page that are run, continued lines joined, without comments."""
    lines = [
        line.strip()
        for block in blocks(page, "bash")
        if block.reason is None
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line and not line.startswith("#")]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
