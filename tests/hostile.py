"""Checkpoints that were changed by who knows how they are sealed."""

from __future__ import annotations

from pathlib import Path

from lit_gpt.checkpoint.contents import sums_text
from lit_gpt.checkpoint.layout import seal
from lit_gpt.utils.files import digest


def resealed(path: Path) -> Path:
    """With sums that fit: who makes a hostile checkpoint can do that too."""
    names = [p.name for p in path.iterdir() if p.name not in ("SHA256SUMS", "COMPLETE")]
    text = sums_text({name: digest(path / name) for name in names})
    (path / "SHA256SUMS").write_text(text)
    (path / "COMPLETE").write_text(seal(7, text))
    return path
