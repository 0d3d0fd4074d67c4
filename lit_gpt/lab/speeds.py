"""Measured speeds, in FLOPs of matrix products per second and GPU, and starts, to say how long a run will take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.lab.rows import Row, summary
from lit_gpt.metrics.throughput import peak_flops
from lit_gpt.utils.files import regular

BENCHMARKS = Path(__file__).resolve().parents[2] / "docs/benchmarks"
MEASURED = [BENCHMARKS / f"{name}_h200.json" for name in ("train_step", "families", "small")]
PER_GPU = "throughput/device/flops_per_sec"
# Tokens per second of a GPU that no run of ours exceeded, however small its model (1.37M of 1.6M parameters,
# docs/examples/scaling): steps then wait for kernels to be launched and not for products.
FASTEST = 1.4e6
IMPORTS = 3.3  # seconds, docs/performance.md
START = IMPORTS + 12.0  # with a first step, which compiles: 9 to 13 s of transformers in train_step_h200.json
ABOUT = math.log(2)  # models that differ by no more, a factor of two, are of about one size


@dataclass(frozen=True)
class Speed:
    """FLOPs per second of a GPU that trains a model. family, flops_per_token: of the model, where they are known.
    source: where the number comes from, in words. start: seconds of a run that its steps do not take.
    """

    flops_per_sec: float
    source: str
    family: str = ""
    flops_per_token: float = 0.0
    start: float = 0.0

    def seconds(self, tokens: float, flops_per_token: float, ranks: int = 1) -> float:
        """GPU seconds of a run on `ranks` GPUs. Where a speed was measured, none has more than FASTEST tokens."""
        least = 1 / FASTEST if self.flops_per_token else 0.0
        return self.start * ranks + tokens * max(flops_per_token / self.flops_per_sec, least)


def speeds_for(given: str | None, rows: Sequence[Row], output: Path, on_cpu: bool) -> list[Speed]:
    """What is known: the number or JSON file that was given; else finished runs of the study; else our benchmarks of a
    GPU, unless they run on CPUs.

    Raises UserError for what is neither a number nor such a file.
    """
    if given is None:
        own = list(of_runs(rows, output))
        there = [path for path in MEASURED if path.is_file() and not on_cpu]
        return own or [speed for path in there for speed in of_benchmark(path)]
    try:
        speed = float(given)
    except ValueError:
        return list(of_benchmark(Path(given)))
    if not 0 < speed < math.inf:
        raise UserError(f"--speed is {given}; give FLOPs per second above 0, such as 4e14.")
    return [Speed(speed, f"at {speed:.3g} FLOPs per second", start=START)]


def of_runs(rows: Sequence[Row], output: Path) -> Iterable[Speed]:
    """The speeds of finished runs of a study. Their starts have validations and saves in them."""
    for row in rows:
        run = summary(output / row.name)
        if run.get("finished") and run.get(PER_GPU):
            source = "at the speed of finished runs of this study"
            rate, total = run.get("throughput/tokens_per_sec"), run.get("time/total", 0.0)
            start = IMPORTS + max(total - run["tokens"] / rate, 0.0) if rate else START
            yield Speed(run[PER_GPU], source, run.get("family", ""), run.get("model_flops_per_token", 0.0), start)


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
                first = row.get("first_step_seconds")
                start = START if first is None else IMPORTS + first
                place = "docs/benchmarks" if path in MEASURED else path.name
                yield Speed(flops, f"of an {row['device']}, {place}", row["family"], per_token, start)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--speed {path} is neither FLOPs per second, such as 4e14, nor a JSON file of benchmarks/train_step.py "
            f"({error})."
        ) from error


def speed_of(speeds: Sequence[Speed], family: str, flops_per_token: float) -> Speed | None:
    """The speed of the model of its family that is nearest in FLOPs per token.

    Where that is not of about its size, the slower of it and of the fastest model of any family that is: small models
    reach fewer FLOPs per second than large ones, and some families fewer than others.
    """

    def distance(speed: Speed) -> float:
        return abs(math.log(speed.flops_per_token / flops_per_token)) if speed.flops_per_token else 0.0

    own = min((speed for speed in speeds if speed.family == family), key=distance, default=None)
    if own and distance(own) <= ABOUT:
        return own
    alike = [speed for speed in speeds if distance(speed) <= ABOUT] or sorted(speeds, key=distance)[:1]
    fastest = max(alike, key=lambda speed: speed.flops_per_sec, default=None)
    if own is None or fastest is None:
        return fastest
    return replace(min(own, fastest, key=lambda speed: speed.flops_per_sec), start=max(own.start, fastest.start))
