"""Cloze questions from held-out documents: which of four continuations is true, and which name comes back.

choice: one context with four continuations of equal length, of which three stand in other documents after the same
white space. name (after LAMBADA, arXiv:1606.06031): the last name of a line, which stands earlier in the document, in
classes by how many tokens earlier. A model that attends can look it up; one with a state of fixed size must have kept
it. Asked once more with another name in place of the earlier ones, it shows what can be guessed without them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from lit_gpt.config.bounds import Bounds
from lit_gpt.errors import UserError
from lit_gpt.evals.cloze_questions import Maker, Question, write_tasks
from lit_gpt.evals.held_out import passages
from lit_gpt.evals.overlap import NGRAM, other_tokenizer, streams_of
from lit_gpt.evals.requests import Request, Score
from lit_gpt.evals.results import Metric
from lit_gpt.evals.soft import softmax
from lit_gpt.evals.tasks import Judged, Outcome

NEAREST = 16  # tokens; a name that was just read is no question of memory
SHORTEST = 2 * NEAREST  # tokens of a context that has near names and others


@dataclass(frozen=True)
class Options:
    """What is asked.

    Args:
        data_dir: folder of tokens whose validation data the questions are made of.
        questions: of each kind, and of each class of distances, at most.
        context: longest context in tokens.
        length: tokens of each continuation.
        near: a name this many tokens earlier or nearer is near.
        middle: a name this many tokens earlier, and not near, is in the middle; all others are far.
        seed: of the places, the names and the wrong continuations.
        tasks_dir: folder to write the questions into, as tasks of lm-eval; default: none.
    """

    data_dir: str
    questions: Annotated[int, Bounds(1)] = 400
    context: Annotated[int, Bounds(SHORTEST)] = 1920
    length: Annotated[int, Bounds(1)] = 24
    near: Annotated[int, Bounds(NEAREST + 1)] = 128
    middle: Annotated[int, Bounds(NEAREST + 1)] = 512
    seed: int = 0
    tasks_dir: Path | None = None

    @property
    def edges(self) -> tuple[int, ...]:
        """Of the classes of distances, in tokens."""
        return NEAREST, self.near, self.middle, self.context


def evaluate(judged: Judged, options: Options) -> Outcome:
    """choice_acc, choice_p (probability of the true one, by log-likelihood per token), choice_nats (of it, per token);
    name_acc@n (all tokens of the name are the likeliest), name_nats@n (of the name), name_gain@n (what another name in
    the place of the earlier ones costs), for names last read n tokens earlier or less.

    Raises UserError for data that no question can be made of, and for a model that cannot read such a context.
    """
    asked = make(judged, options)
    if options.tasks_dir is not None and judged.crew.rank == 0:
        write_tasks(asked, options.tasks_dir)
    requests = {name: _requests(judged, questions) for name, questions in asked.items()}
    scores = iter(judged.score([r for many in requests.values() for some in many for r in some], show=True))
    rows: dict[str, list[dict[str, float]]] = {}
    for name, questions in asked.items():
        read, (kind, at, edge) = _choice if name == "choice" else _name, name.partition("@")
        answers = [read(q, [next(scores) for _ in some]) for q, some in zip(questions, requests[name])]
        rows[name] = [{f"{kind}_{key}{at}{edge}": value for key, value in one.items()} for one in answers]
    counts = {name: len(questions) for name, questions in asked.items()}
    near = [_near_answer(some[q.answer]) for name in asked for q, some in zip(asked[name], requests[name])]
    metrics = {key: metric for found in rows.values() for key, metric in _metrics(found)}
    return Outcome(
        sum(counts.values()), metrics, {"asked": counts}, near, [row for some in rows.values() for row in some]
    )


def check(judged: Judged, options: Options) -> None:
    """Raises UserError where there are no data, and for what make() refuses before it reads them."""
    _check(judged, options)
    streams_of(options.data_dir, "validation")  # raises where there are none


def _check(judged: Judged, options: Options) -> None:
    """Raises UserError for data of another tokenizer, or of one that ends no document, and sizes that do not fit."""
    _check_sizes(options, judged.max_length)
    if other := other_tokenizer(options.data_dir, judged.tokenizer):
        raise UserError(
            f"{options.data_dir} has tokens of {other!r}, and the model those of {judged.tokenizer.name!r}. Give "
            "--data_dir data that was prepared with the model's tokenizer."
        )
    assert judged.eos_id >= 0  # it raises where there is none


def make(judged: Judged, options: Options) -> dict[str, list[Question]]:
    """`choice`, and `name@n` for each class of distances: its questions; a kind without any is left out.

    Raises UserError for data of another tokenizer, and for data and sizes that give no question.
    """
    _check(judged, options)
    found = passages(streams_of(options.data_dir, "validation"), judged.tokenizer, options.context, judged.bos_id)
    maker = Maker(found, lambda text: judged.encode(text, start=False), judged.tokenizer.decode, options.seed)
    names = maker.names(options.questions, options.edges)
    asked = {"choice": maker.choices(options.questions, options.length)}
    asked |= {f"name@{edge}": questions for edge, questions in names.items()}
    if not any(asked.values()):
        raise UserError(
            f"No question can be made of the {len(found)} passages in the validation data of {options.data_dir}. Give "
            "more data, or a smaller --context and --length."
        )
    _say_left_out(asked, len(found), options)
    return {name: questions for name, questions in asked.items() if questions}


def _check_sizes(options: Options, max_length: int) -> None:
    """Raises UserError, with sizes that fit, for classes of distances and a context that do not."""
    room = max_length - options.length
    if room < SHORTEST:
        raise UserError(
            f"--length {options.length} leaves {max(0, room)} of the model's {max_length} tokens for a context, and "
            f"{SHORTEST} are needed. Give a smaller --length, or --max_length {options.length + options.context}."
        )
    if options.context > room:
        raise UserError(
            f"--context {options.context} and {options.length} tokens after it do not fit into the model's "
            f"{max_length}. Give --context {room}{_classes(room, options)}, or a larger --max_length."
        )
    if not options.near < options.middle < options.context:
        raise UserError(
            f"--near {options.near}, --middle {options.middle} and --context {options.context} must grow in this "
            f"order. Give{_typed(options.context)}."
        )


def _classes(room: int, options: Options) -> str:
    """What else to type where a context of `room` tokens does not hold the classes of distances."""
    return "" if options.near < options.middle < room else _typed(room)


def _typed(context: int) -> str:
    """Classes of distances that fit into a context, as options."""
    return f" --near {max(NEAREST + 1, context // 16)} --middle {max(NEAREST + 2, context // 4)}"


def _say_left_out(asked: dict[str, list[Question]], passages: int, options: Options) -> None:
    """A kind without questions has no figures, which nobody would see in a long list of others."""
    for name in [name for name, questions in asked.items() if not questions]:
        what = f"--length {options.length}" if name == "choice" else f"the distances of {name}"
        print(
            f"note: no {name} question, and so none of its figures: none of the {passages} passages fits {what}",
            file=sys.stderr,
        )


def _requests(judged: Judged, questions: Sequence[Question]) -> list[list[Request]]:
    """Of each question its choices, then the changed one. As in lm-eval, a continuation has the tokens of both texts
    together, less as many as the context has.
    """
    pairs = [
        [(q.context, text) for text in q.choices] + [(q.changed, q.choices[0])] * bool(q.changed) for q in questions
    ]
    texts = list(dict.fromkeys(text for some in pairs for a, b in some for text in (a, a + b)))
    tokens = dict(zip(texts, map(tuple, judged.encode_batch(texts))))
    return [[Request(tokens[a], tokens[a + b][len(tokens[a]) :]) for a, b in some] for some in pairs]


def _near_answer(asked: Request) -> np.ndarray:
    """The answer and what is before it, as far as an n-gram that has a part of the answer reaches."""
    return np.array(asked.context[-(NGRAM - 1) :] + asked.continuation, np.int32)


def _choice(question: Question, scores: Sequence[Score]) -> dict[str, float]:
    per_token = [score.total / len(score.log_p) for score in scores]
    right = per_token[question.answer]
    said = per_token.index(max(per_token))  # the first of equal ones, as lm-eval: with a zero head all are equal
    return {"acc": float(said == question.answer), "p": softmax(per_token)[question.answer], "nats": -right}


def _name(question: Question, scores: Sequence[Score]) -> dict[str, float]:
    here, *changed = scores
    gain = {"gain": here.total - changed[0].total} if changed else {}
    return {"acc": float(here.greedy), "nats": -here.total, **gain}


def _metrics(rows: Sequence[dict[str, float]]) -> Iterator[tuple[str, Metric]]:
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        if "_acc" in name:
            yield name, Metric.share(int(sum(values)), len(values))
        else:
            yield name, Metric.mean(values, "lower" if "_nats" in name else "higher")
