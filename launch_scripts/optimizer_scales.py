"""What optimizer_benchmark.py trains: the models and protocols of two published benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt import architectures
from lit_gpt.errors import UserError, did_you_mean

TABLE = Path(__file__).with_name("optimizers.csv")


class Scale(NamedTuple):
    """A model, and what optimizers share on it unless the table says otherwise.

    batch: in tokens. warmup, steps: of the published run; a shorter one has as large a part of warm-up.
    final: last rate over peak rate. clip: largest norm of all gradients together. micro: sequences that a GPU took at
    once. size: the table's rows for it. source: the benchmark, as the table's column of this name begins.
    options: others of pretrain.py that belong to the protocol.
    """

    family: str
    depth: int
    batch: int
    steps: int
    warmup: int
    final: float
    weight_decay: float
    clip: float
    micro: int
    size: str
    source: str
    options: Mapping[str, Any] = {}

    @property
    def tokens(self) -> int:
        """The published budget."""
        return self.batch * self.steps

    def micro_batch(self, gpus: int) -> int:
        """The most sequences, up to the published number, with which micro-batches of so many GPUs make the batch.

        Raises UserError where none does.
        """
        rows = self.batch // architectures.build(self.family, self.depth).block_size
        if rows % gpus:
            raise UserError(
                f"A batch of {self.family} is {rows:,} sequences, which {gpus} GPUs cannot share equally. Give "
                "--per_run a number that divides it."
            )
        return max(n for n in range(1, self.micro + 1) if rows // gpus % n == 0)


def _stage1(size: str, depth: int, steps: int, micro: int) -> Scale:
    """OpenRaiser/scaling-for-scaling, stage 1; its README clips at 1 (its scripts do not)."""
    return Scale(f"llama_{size}", depth, 2**17, steps, steps // 10, 0.1, 0.0, 1.0, micro, size, "S1")


def _stage2(family: str, depth: int) -> Scale:
    """Stage 2 of the same: rows of 32,768 tokens, in which documents are kept apart, and cut after 4,096 tokens."""
    size = f"s2_{family.rpartition('_')[2]}"
    return Scale(family, depth, 2**19, 30_720, 1_024, 0.1, 0.1, 1.0, 1, size, "S2", {"varlen": True, "doc_len": 4096})


def _small(family: str, depth: int, size: str, steps: int = 128_000) -> Scale:
    """Of the launch scripts of arXiv:2509.01440, those with batches of 256 sequences."""
    return Scale(family, depth, 2**17, steps, 2_000, 0.01, 0.1, 0.5, 64, size, "E")


def _large(family: str) -> Scale:
    """The others of these: 62 sequences 32 times."""
    return Scale(family, 12, 62 * 32 * 512, 48_000, 2_000, 0.01, 0.1, 0.1, 62, "720m", "E")


SCALES = {
    "60m": _stage1("60m", 8, 10_000, 128),
    "130m": _stage1("130m", 12, 20_000, 128),
    "350m": _stage1("350m", 24, 60_000, 128),
    "1b": _stage1("1b", 24, 100_000, 64),
    "124m": _small("llama_124m", 12, "124m"),
    "210m": _small("llama_210m", 24, "210m"),
    "720m": _large("llama_720m"),
    "520m_moe": _small("llama_520m_moe", 12, "520m", steps=336_000),
    # Nobody published values for its GPT-2, which here gets those of LLaMA at the same size.
    "gpt_124m": _small("gpt_124m", 12, "124m"),
    "gpt_210m": _small("gpt_210m", 24, "210m"),
    "gpt_720m": _large("gpt_720m"),
    **{
        f"{name}_{size}": _stage2(f"{name}_{size}", depth)
        for size in ("340m", "1b")
        for name, depth in (("transformer", 24), ("gla", 24), ("deltanet", 24), ("gdn", 21))
    },
}


def scales_of(typed: str) -> list[str]:
    """The scales of a list with commas. Raises UserError for one that is unknown."""
    names = [name for name in typed.split(",") if name]
    if not names:
        raise UserError(f"--scale names no model. Give {', '.join(SCALES)}.")
    for name in names:
        if name not in SCALES:
            raise UserError(f"There is no scale {name!r}.{did_you_mean(name, SCALES)} Give {', '.join(SCALES)}.")
    return list(dict.fromkeys(names))
