"""The questions as a model reads them, in plain Python: LightEval's environment does not have our package.

The wording is ArchScale's, so that scores can be compared with its. The order of a question's options depends on the
seed and the question only (departure D92).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LETTERS = "ABCD"
MATH = "Please reason step by step, and put your final answer within \\boxed{{}}. {question}"
CHOICE = """Please reason step by step, and put your final choice of one letter from A/B/C/D within \\boxed{{}}. \
{question}

{options}"""
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")  # GPQA's columns


class Prompt(NamedTuple):
    """What a model is asked, the possible answers, and which of them is right."""

    text: str
    choices: list[str]
    right: int


class Benchmark(NamedTuple):
    """Where questions come from. answer: its column; None for GPQA. samples: of each question, as in ArchScale."""

    repository: str
    subset: str
    split: str
    question: str
    answer: str | None
    samples: int


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "default", "train", "problem", "answer", 64),
    "aime25": Benchmark("yentinglin/aime_2025", "default", "train", "problem", "answer", 64),
    "math_500": Benchmark("HuggingFaceH4/MATH-500", "default", "test", "problem", "answer", 8),
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "question", "answer", 8),
    "gpqa_diamond": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", "Question", None, 8),
}


def prompt_of(benchmark: Benchmark, row: Mapping[str, str], seed: int) -> Prompt:
    """A row of the data set as a prompt."""
    question = row[benchmark.question].strip()
    if benchmark.answer is None:
        return _choice(question, [row["Correct Answer"], *(row[name] for name in WRONG)], seed)
    answer = str(row[benchmark.answer]).rpartition("####")[2].strip()  # GSM8K has the way to the answer before it
    return Prompt(MATH.format(question=question), [answer], 0)


def order_of(question: str, count: int, seed: int) -> list[int]:
    """A permutation of 0 to count - 1, the same in every process, Python and machine."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed}/{i}/{question}".encode()).digest())


def _choice(question: str, options: Sequence[str], seed: int) -> Prompt:
    """options: the right one first."""
    order = order_of(question, len(options), seed)
    lines = [f"{letter}) {options[i].strip()}" for letter, i in zip(LETTERS, order)]
    return Prompt(CHOICE.format(question=question, options="\n".join(lines)), list(LETTERS), order.index(0))
