"""Texts to prepare, and what preparation leaves in a folder."""

from __future__ import annotations

import random
from pathlib import Path


def texts(n, seed=0):
    rng = random.Random(seed)
    words = ["alpha", "beta\n", "gamma ", "\u03b4\u03ad\u03bb\u03c4\u03b1", "\U0001f600", "  ", "def f():", "1234"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(n)]


def write_folder(folder, documents):
    folder.mkdir(parents=True)
    for i, text in enumerate(documents):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    return str(folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
