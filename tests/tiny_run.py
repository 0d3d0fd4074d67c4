"""A corpus that is the same on every machine, and pretrain.py on it with a model of a few thousand weights."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import find_checkpoint, read_meta
from lit_gpt.data.prepare import prepare

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the entry points are no part of the package

import pretrain  # noqa: E402

TEXT = "the a of to in is that it for on with as was at by be this from or an are not but "
TEXT += "width depth batch token scale model layer rate loss step weight norm head query key value"
WORDS = TEXT.split()

# Depth 2, width 32 (base model: depth 1, width 128), context 64; 8 sequences a batch.
OPTIONS: dict[str, Any] = {
    "train_model": "transformer",
    "depth": 2,
    "ar": 16,
    "ctx_len": 64,
    "train_name": "mup",
    "micro_bsz": 8,
    "total_bsz": 512,
    "max_tokens": 8 * 512,
    "base_hps.d0": 1,
    "base_hps.ar0": 128,
    "base_hps.hd0": 16,
    "base_hps.b0": 512,
    "base_hps.warmup_tokens": 1024,
    "base_hps.eta0": 4e-3,
    "log_step": 1,
    "num_workers": 0,
}


def make_text(seed: int, sentences: int = 40) -> str:
    """Words in a fixed random order. random.random() alone is promised to never change between Pythons."""
    draw = random.Random(seed).random
    lines = []
    for _ in range(sentences):
        words = [WORDS[int(len(WORDS) * draw() ** 2)] for _ in range(5 + int(8 * draw()))]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines) + "\n"


def make_corpus(folder: Path, documents: int = 40) -> Path:
    """Prepared shards of about 2 kB per document: bytes, vocabulary 257, a tenth of it validation."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    for i in range(documents):
        (texts / f"{i:03d}.txt").write_text(make_text(i), encoding="utf-8", newline="\n")
    prepare(str(texts), str(folder / "data"), validation_fraction=0.1, num_workers=1, progress=False)
    return folder / "data"


def words(data: Path | str | None, out: Path | str, **options: Any) -> list[str]:
    """The command line of a tiny run; dots in option names are written as double underscores, None leaves one out."""
    typed = {key.replace("__", "."): value for key, value in options.items()}
    merged = {"train_data_dir": data, "out_dir": out, **OPTIONS, **typed}
    return [f"--{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in merged.items() if v is not None]


def run(data: Path | str | None, out: Path | str, **options: Any) -> int:
    """pretrain.py in this process; its exit code."""
    return pretrain.main(words(data, out, **options))


def folder_of(out: Path) -> Path:
    """The one run folder under --out_dir."""
    (folder,) = (path.parent for path in out.glob("*/plan.json"))
    return folder


def saved_steps(out: Path) -> list[str]:
    """The names of the run's checkpoints, in order."""
    return sorted(path.name for path in (folder_of(out) / "checkpoints").iterdir())


def newest_step(out: Path) -> int:
    """The step of the run's newest checkpoint."""
    path = find_checkpoint(folder_of(out), True)
    assert path is not None
    return read_meta(path)["step"]


def rows(out: Path, key: str = "metric/train_loss") -> dict[int, float]:
    """Step -> logged value of one metric."""
    lines = (folder_of(out) / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row[key] for row in map(json.loads, lines) if key in row}
