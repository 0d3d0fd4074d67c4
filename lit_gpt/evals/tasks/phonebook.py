"""Phonebook: look up one number among many ("Repeat After Me", arXiv:2402.01032, section 3; Samba, arXiv:2406.07522).

A prompt is a list of `name: number` lines, two of them again as examples, and then a name of the list with a colon. The
answer counts when the first line of the continuation is that name's number. A model with a memory of fixed size must
fail from some length on, which is what this shows. nats@n is smoother: what a token of the right number costs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from tqdm import tqdm

from lit_gpt.config.bounds import Bounds
from lit_gpt.errors import UserError
from lit_gpt.evals.requests import Request
from lit_gpt.evals.results import Metric
from lit_gpt.evals.tasks import Judged, Outcome

FIRST_NAMES = (
    "Ada Ben Cara Dan Eva Finn Gina Hugo Ida Jack Kate Liam Mona Noah Olga Paul Quin Rosa Sam Tina Umar Vera Will "
    "Xena Yara Zack Amir Bela Ciro Dora Egon Fay"
)
LAST_NAMES = (
    "Adams Baker Clark Davis Evans Ford Green Hill Irwin Jones King Lewis Moore Nash Owens Price Quinn Reed Smith "
    "Tate Usher Vance White Xu Young Zane Abbott Burns Cole Dunn Ellis Fox"
)
FIRST, LAST = FIRST_NAMES.split(), LAST_NAMES.split()
MIDDLE = [f" {letter}." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
NEW_TOKENS = 20  # ArchScale's; ten digits need no more, even one token each
EXAMPLES = 2
NAMES = len(FIRST) * len(LAST) * len(MIDDLE)
ENTRIES = Bounds(EXAMPLES + 1, NAMES)


@dataclass(frozen=True)
class Options:
    """The flags are ArchScale's.

    Args:
        min_eval_len: entries of the shortest list.
        max_eval_len: entries of the longest list.
        num_eval: how many lengths at most, evenly spaced from the shortest to the longest; of 1, the longest.
        eval_num_batches: batches of eval_batch_size questions at each length.
        eval_batch_size: questions in a batch.
        seed: of names, numbers and questions.
        verbose: print every answer beside the right one.
    """

    min_eval_len: Annotated[int, ENTRIES] = 480
    max_eval_len: Annotated[int, ENTRIES] = 480
    num_eval: Annotated[int, Bounds(1)] = 48
    eval_num_batches: Annotated[int, Bounds(1)] = 32
    eval_batch_size: Annotated[int, Bounds(1)] = 4
    seed: int = 42
    verbose: bool = False

    @property
    def lengths(self) -> list[int]:
        """Evenly spaced with both ends, rounded; ArchScale asks one more, or leaves the longest out (departure D94)."""
        extra = self.max_eval_len - self.min_eval_len
        parts = min(self.num_eval - 1, extra)
        return [self.max_eval_len - round(i * extra / max(parts, 1)) for i in reversed(range(parts + 1))]


def check(judged: Judged, options: Options) -> None:
    """Raises UserError for a model that generates no text, and a list that does not fit into its max_length."""
    if options.min_eval_len > options.max_eval_len:
        raise UserError(
            f"--min_eval_len {options.min_eval_len} is more than --max_eval_len {options.max_eval_len}. Swap them."
        )
    judged.check_room(NEW_TOKENS)
    _encoded(judged, options.max_eval_len, [_asked(options, options.max_eval_len, 0)])


def evaluate(judged: Judged, options: Options) -> Outcome:
    """acc@n: the share of right answers among n entries. nats@n: of the right number, per token; a model that knows
    only that it is made of digits needs ln 10 for each of these. tokens@n: of the longest such prompt.

    Raises UserError for a list that does not fit into the model's max_length.
    """
    check(judged, options)  # before hours of shorter lists
    metrics, count = {}, options.eval_num_batches * options.eval_batch_size
    sequences: list[np.ndarray] = []
    rows: list[dict[str, float]] = []
    for entries in tqdm(options.lengths, desc="phonebook", unit="length", disable=judged.crew.rank > 0):
        asked = [_asked(options, entries, i) for i in range(count)]
        prompts = _encoded(judged, entries, asked)
        sequences += prompts
        answers = judged.continue_texts([prompt for prompt, _ in asked], NEW_TOKENS, until=["\n"])
        right = [a.strip() == number for a, (_, number) in zip(answers, asked)]
        if options.verbose and judged.crew.rank == 0:
            print("\n".join(f"{entries} entries: {a.strip()!r}, right is {n}" for a, (_, n) in zip(answers, asked)))
        metrics[f"acc@{entries}"] = Metric.share(sum(right), count)
        numbers = [Request(tuple(p), tuple(judged.encode(f" {n}", start=False))) for p, (_, n) in zip(prompts, asked)]
        costs = [-score.total / len(score.log_p) for score in judged.score(numbers)]
        rows += [{f"acc@{entries}": float(r), f"nats@{entries}": cost} for r, cost in zip(right, costs)]
        metrics[f"nats@{entries}"] = Metric.mean(costs, "lower")
        metrics[f"tokens@{entries}"] = Metric(max(map(len, prompts)), better="lower")
    return Outcome(count * len(options.lengths), metrics, {"max_length": judged.max_length}, sequences, rows)


def _asked(options: Options, entries: int, index: int) -> tuple[str, str]:
    return question(entries, f"{options.seed}-{entries}-{index}")


def _encoded(judged: Judged, entries: int, asked: list[tuple[str, str]]) -> list[np.ndarray]:
    """The prompts in tokens. Raises UserError where one does not fit."""
    prompts = [np.array(judged.encode(prompt), np.int32) for prompt, _ in asked]
    longest = max(map(len, prompts))
    if longest + NEW_TOKENS > judged.max_length:
        raise UserError(
            f"{entries} entries are {longest} tokens, and with {NEW_TOKENS} for the answer they do not fit into "
            f"max_length {judged.max_length}. Give a smaller --max_eval_len, or --max_length {longest + NEW_TOKENS}."
        )
    return prompts


def question(entries: int, seed: str) -> tuple[str, str]:
    """A prompt and its answer. No name is there twice, so that there is one answer."""
    draw = random.Random(seed)
    chosen = draw.sample(range(NAMES), entries)
    book = [f"{_name(i)}: {draw.randrange(6_000_000_000, 10_000_000_000)}" for i in chosen]
    *examples, (name, number) = (line.split(": ") for line in draw.sample(book, EXAMPLES + 1))
    shown = "\n".join(f"{who}: {what}" for who, what in examples)
    return "\n".join([*book, "", shown, "", f"{name}:"]), number


def _name(index: int) -> str:
    rest, first = divmod(index, len(FIRST))
    middle, last = divmod(rest, len(LAST))
    return f"{FIRST[first]}{MIDDLE[middle]} {LAST[last]}"
