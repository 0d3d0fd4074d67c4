"""Curves of a run over its tokens, thinned out for drawing."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.runs import Run
from lit_gpt.metrics.summary import METRICS_FILE, read_metrics

# What a reader of a study looks at; the whole of it is in metrics.jsonl.
SHOWN = re.compile(
    r"metric/(train_loss|val_loss(_[\w-]+)?@1x|grad_norm|weight_learning_rate|maxvio_batch_avg)|throughput/tokens_per_sec"
)
MOST = 400  # points of a curve: as many as a screen shows


def curves_of(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> {"x": tokens, "y": values}; empty for a run that logged nothing."""
    if run.folder is None or not (run.folder / METRICS_FILE).is_file():
        return {}
    now = (run.folder / METRICS_FILE).stat()
    return _read(run.folder, now.st_mtime_ns, now.st_size)


@lru_cache(4096)  # a live report reads the runs that have ended once
def _read(folder: Path, changed: int, size: int) -> dict[str, dict[str, np.ndarray]]:
    try:
        found = read_metrics(folder)
    except UserError:  # it just began
        return {}
    tokens = found.get("total_tokens", found["step"])
    thinned = {key: thin(tokens, values) for key, values in found.items() if SHOWN.fullmatch(key)}
    return {key: {"x": x, "y": y} for key, (x, y) in thinned.items() if len(x)}


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about MOST of the finite points: the lowest and the highest of each stretch, so that spikes stay."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= MOST:
        return x, y
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), MOST // 2 - 1):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    order = sorted(kept)
    return x[order], y[order]
