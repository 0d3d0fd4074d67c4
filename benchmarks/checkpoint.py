"""What a checkpoint costs: how long a save holds up training, and how long writing, checking and loading take.

    python benchmarks/checkpoint.py --depth 16 --folder /local/disk --output docs/benchmarks/checkpoint_h200.json

A transformer of the depth with AdamW's state is saved --saves times, as in training, and loaded once. Seconds:

    blocking    of a save, until training goes on; the first one, which allocates pinned memory, by itself
    published   of the same save, until the checkpoint is on the disk and has its name
    checked     the sums of all files, read from the page cache
    loaded      all of a load, with that check
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command


def main(depth: int = 16, saves: int = 3, folder: Path | None = None, output: Path | None = None) -> int:
    """Measure how long saving and loading a checkpoint takes.

    Args:
        depth: depth of the transformer.
        saves: number of saves; the first one is shown by itself.
        folder: folder on the disk to measure; default: one for temporary files.
        output: JSON file for the figures.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer = with_adamw(depth, device)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        saver = Checkpointer(Path(place), Alone(), keep_last=1)
        blocking, published = [], []
        for step in range(1, saves + 1):
            begin = time.perf_counter()
            blocking.append(timed(partial(saver.save, step, model, optimizer, {"tokens": step})))
            saver.wait()
            published.append(time.perf_counter() - begin)
        saver.close()
        (path,) = checkpoint.list_checkpoints(Path(place))
        row: dict[str, Any] = {"depth": depth, "gib": sum(f.stat().st_size for f in path.iterdir()) / 2**30}
        row |= {"first blocking": blocking[0], "blocking": median(blocking[1:]), "published": median(published[1:])}
        if hasattr(checkpoint, "damage"):  # versions up to 7cbe3a3, which this also measures, had no sums
            row["written files"] = len(list(path.glob("*.distcp")))
            fresh = Path(place, "step-000000")  # under a name whose sums are not known yet
            path.rename(fresh)
            row["checked"] = timed(lambda: checkpoint.damage(fresh))
            path = fresh.rename(path)
        row["loaded"] = timed(lambda: load_checkpoint(path, model, optimizer, Alone()))
    row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        "\n".join(
            f"{name:16} {value:.2f}" if isinstance(value, float) else f"{name:16} {value}"
            for name, value in row.items()
        )
    )
    if output:
        output.write_text(json.dumps(row, indent=2) + "\n")
    return 0


answer_early(__name__, reader_of(main))

import torch
from torch import nn

from lit_gpt import architectures, checkpoint
from lit_gpt.checkpoint import Checkpointer, load_checkpoint
from lit_gpt.model import GPT


class Alone:
    """One process without a launcher."""

    is_main, rank, world_size = True, 0, 1

    def barrier(self) -> None:
        """Nobody to wait for."""


def with_adamw(depth: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A transformer of random weights, and its optimizer, whose state is there."""
    with torch.device(device):
        model = GPT(architectures.build("transformer", depth))
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        nn.init.normal_(p)
        moments = {name: torch.rand_like(p) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.tensor(1.0), **moments}
    return model, optimizer


def timed(run: Any) -> float:
    """Seconds of run(), and of what it left to the device."""
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    run_command(command_of(main))
