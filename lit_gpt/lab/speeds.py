"""Measured speeds, in FLOPs of matrix products per second and GPU, to say how long a run will take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.lab.rows import Row, summary
from lit_gpt.metrics.throughput import peak_flops
from lit_gpt.utils.files import regular

MEASURED = Path(__file__).resolve().parents[2] / "docs/benchmarks/train_step_h200.json"
PER_GPU = "throughput/device/flops_per_sec"


@dataclass(frozen=True)
class Speed:
    """FLOPs per second of a GPU that trains a model. family, flops_per_token: of the model, where they are known.
    source: where the number comes from, in words.
    """

    flops_per_sec: float
    source: str
    family: str = ""
    flops_per_token: float = 0.0


def speeds_for(given: str | None, rows: Sequence[Row], output: Path, on_cpu: bool) -> list[Speed]:
    """What is known: the number or JSON file that was given; else finished runs of the study; else our benchmark of a
    GPU, unless they run on CPUs.

    Raises UserError for what is neither a number nor such a file.
    """
    if given is None:
        own = list(of_runs(rows, output))
        return own or (list(of_benchmark(MEASURED)) if MEASURED.is_file() and not on_cpu else [])
    try:
        speed = float(given)
    except ValueError:
        return list(of_benchmark(Path(given)))
    if not 0 < speed < math.inf:
        raise UserError(f"--speed is {given}; give FLOPs per second above 0, such as 4e14.")
    return [Speed(speed, f"at {speed:.3g} FLOPs per second")]


def of_runs(rows: Sequence[Row], output: Path) -> Iterable[Speed]:
    """The speeds of finished runs of a study."""
    for row in rows:
        run = summary(output / row.name)
        if run.get("finished") and run.get(PER_GPU):
            source = "at the speed of finished runs of this study"
            yield Speed(run[PER_GPU], source, run.get("family", ""), run.get("model_flops_per_token", 0.0))


def of_benchmark(path: Path) -> Iterable[Speed]:
    """The rows of benchmarks/train_step.py: MFU times the peak of their device. Raises UserError for another file."""
    try:
        rows: Any = json.loads(regular(path).read_text(encoding="utf-8"))
        rows = rows if isinstance(rows, list) else rows["rows"]
        for row in rows:
            peak = peak_flops(row["device"])
            if row.get("mfu") and peak and not row.get("options"):
                flops = row["mfu"] * peak
                per_token = flops / row["tokens_per_sec"]
                yield Speed(flops, f"of an {row['device']}, {path.name}", row["family"], per_token)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--speed {path} is neither FLOPs per second, such as 4e14, nor a JSON file of benchmarks/train_step.py "
            f"({error})."
        ) from error


def speed_of(speeds: Sequence[Speed], family: str, flops_per_token: float) -> float | None:
    """The speed of the nearest model: of its family where there is one, and of the nearest FLOPs per token."""
    same = [speed for speed in speeds if speed.family == family] or list(speeds)

    def distance(speed: Speed) -> float:
        return abs(math.log(speed.flops_per_token / flops_per_token)) if speed.flops_per_token else 0.0

    return min(same, key=distance).flops_per_sec if same else None
