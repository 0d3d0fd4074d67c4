"""Which averages of the weights a checkpoint has (--ema), and which one is meant (--weights)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lit_gpt.checkpoint.state import EMA, MODEL
from lit_gpt.config.words import read_tokens
from lit_gpt.errors import UserError
from lit_gpt.optim.engine.averages import label

NAME = re.compile(rf"{re.escape(EMA)}(\d{{1,20}})\.(.+)", re.ASCII)  # ema.<half-life>.<parameter>


def half_lives(names: Iterable[str]) -> list[int]:
    """The half-lives in tokens of the averages among the names of a checkpoint's tensors, smallest first."""
    return sorted({int(found[1]) for name in names if (found := NAME.fullmatch(name))})


def half_life_of(weights: str, path: Path, names: Iterable[str]) -> int:
    """The half-life of the average that is called "ema_1B", or another spelling of that count.

    names: of the tensors of the checkpoint at `path`. Raises UserError where it does not have that average.
    """
    try:
        half_life = int(read_tokens(weights.removeprefix("ema_")))
    except (ValueError, OverflowError):
        half_life = 0
    if half_life not in (known := half_lives(names)):
        there = f"It has {', '.join(map(label, known))}" if known else "It has none, since it was trained without --ema"
        raise UserError(f"{path} has no average {weights!r}. {there}; without --weights, the trained weights are used.")
    return half_life


def weights_of(names: Iterable[str], half_life: int | None) -> dict[str, str]:
    """Name of a tensor of the model -> the name in a checkpoint, among `names`, of the tensor that is meant.

    half_life: of an average; the buffers are those of the trained weights. None for the trained weights.
    """
    prefixes = [MODEL, *([] if half_life is None else [f"{EMA}{half_life}."])]
    return {name.removeprefix(prefix): name for prefix in prefixes for name in names if name.startswith(prefix)}
