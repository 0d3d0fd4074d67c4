"""Tokens per second of log-likelihood scoring, the work of most of lm-eval's tasks and of perplexity.

    python benchmarks/scoring.py --depth 16 --output FILE.json

"Texts" are scored whole, each token given all before it. "Questions" have four answers of 16 tokens to a context of
512. A token counts once, however many answers share it. Weights and tokens are random; loading is not in the times,
and neither is the first call, which compiles kernels. train_step.py measures training with the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.evals.requests import Request


def main(
    families: str = "transformer",
    depth: int = 16,
    length: int = 4096,
    count: int = 128,
    ar: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    output: str | None = None,
) -> None:
    """Score texts and questions with each family, and print a table.

    Args:
        families: comma-separated model families.
        depth: their depth.
        length: tokens of a text.
        count: how many texts, and eight times as many questions.
        ar: aspect ratio; default the family's.
        device: default cuda where there is one.
        dtype: of weights' products; default bf16 on a GPU, fp32 elsewhere.
        output: JSON file for the rows.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or ("bf16" if place == "cuda" else "fp32")
    rows: list[dict[str, Any]] = []
    print(f"{'model':<20}{'what':>12}{'tokens':>12}{'tokens/s':>12}")
    for family in families.split(","):
        model = build(family, depth, ar, length, place, DTYPES[kind])
        size = model.config.vocab_size
        for what, requests in {"texts": texts(count, length, size), "questions": questions(8 * count, size)}.items():
            ms = milliseconds(
                lambda requests=requests, model=model: score(model, requests, max_length=length),
                torch.device(place),
                steps=3,
                warmup=1,
            )
            speed = 1e3 * tokens_of(requests) / ms
            rows.append({"family": family, "depth": depth, "what": what, "dtype": kind, "tokens_per_sec": speed})
            print(f"{family + f' d{depth}':<20}{what:>12}{tokens_of(requests):>12,}{speed:>12,.0f}", flush=True)
    if output:
        keep(rows, place, Path(output))


answer_early(__name__, reader_of(main))

import torch
from decode import DTYPES, build, keep
from timing import milliseconds

from lit_gpt.evals.scoring import score

CONTEXT, ANSWER, ANSWERS = 512, 16, 4  # about the sizes of a five-shot question of ARC or HellaSwag


def texts(count: int, length: int, vocabulary: int) -> list[Request]:
    """So many texts of `length` predicted tokens."""
    rows = torch.randint(vocabulary, (count, length + 1)).tolist()
    return [Request((row[0],), tuple(row[1:])) for row in rows]


def questions(count: int, vocabulary: int) -> list[Request]:
    """So many questions with four answers each."""
    contexts = torch.randint(vocabulary, (count, CONTEXT)).tolist()
    answers = torch.randint(vocabulary, (count, ANSWERS, ANSWER)).tolist()
    return [Request(tuple(c), tuple(a)) for c, many in zip(contexts, answers) for a in many]


def tokens_of(requests: list[Request]) -> int:
    """Tokens that are read, each shared context once."""
    return sum(map(len, {r.context for r in requests})) + sum(len(r.continuation) - 1 for r in requests)


if __name__ == "__main__":
    run_command(command_of(main))
