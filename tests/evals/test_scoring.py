"""Scores of many continuations at once are those of one sequence at a time."""

from __future__ import annotations

import random

import pytest
import torch
from small_models import LENGTH, VARIED, VOCAB, model_of, optioned, small

from lit_gpt.errors import UserError
from lit_gpt.evals import prefixes, scoring
from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.requests import Request
from lit_gpt.evals.scoring import Group, score, windows
from lit_gpt.model import GPT


def naive(model: GPT, request: Request, max_length: int = LENGTH) -> list[float]:
    """ln p of each token, by the training forward on this sequence alone."""
    whole = (request.context + request.continuation)[-(max_length + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    return logits.gather(1, torch.tensor(whole[1:])[:, None])[-len(request.continuation) :, 0].tolist()


def requests(contexts: int, choices: int) -> list[Request]:
    """Contexts of 1 to 15 tokens, each with some continuations of 1 to 6; two are asked for twice."""
    draw = random.Random(0)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCAB) for _ in range(draw.randint(1, most)))

    asked = []
    for _ in range(contexts):
        context = tokens(15)
        asked += [Request(context, tokens(6)) for _ in range(draw.randint(1, choices))]
    return asked + asked[:2]


@pytest.mark.parametrize("family", VARIED)
def test_every_family(family):
    model, asked = model_of(small(family)), requests(5, 3)
    for request, found in zip(asked, score(model, asked, max_length=LENGTH, batch_tokens=60)):
        torch.testing.assert_close(found.log_p, naive(model, request), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("counted", ["restart", "continue"])
def test_learned_positions_of_contexts_that_end_together(counted):
    """The longest context and the longest answer have more tokens together than the table has."""
    model = model_of(optioned("learned").replace(varlen=True, doc_positions=counted))
    asked = [Request(tuple(range(22)), (i, 2)) for i in range(2)]
    asked += [Request(tuple(range(n)), (i, 2, 3, 4, 5, 6)) for n in (2, 9) for i in range(2)]
    for request, found in zip(asked, score(model, asked, max_length=LENGTH)):
        torch.testing.assert_close(found.log_p, naive(model, request), rtol=1e-6, atol=1e-6)


def test_a_context_is_computed_once():
    """Four choices of ten tokens for a context of twelve: 12 + 4 x 9 tokens, where one by one it is 4 x 21."""
    model, context = model_of(small("transformer")), tuple(range(12))
    asked = [Request(context, (i,) * 10) for i in range(4)]
    seen: list[int] = []
    model.blocks[0].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    score(model, asked, max_length=LENGTH)
    assert seen == [12, 4 * 9]
    seen.clear()
    score(model, [Request(context, (i,)) for i in range(4)], max_length=LENGTH)
    assert seen == [12], "choices of one token are all read from one place"


# Every kind of cache: of keys and values, of windows, of states, of each with others that read it; and experts.
CACHES = ["transformerls", "sambay", "swayoco", "sambayda", "gdny", "mambay2", "gla", "fox", "sambay_gqa4_moe"]


@pytest.mark.parametrize("family", CACHES)
def test_questions_that_begin_alike(family, monkeypatch):
    """Two sets of examples, questions of several lengths with one choice or more: as each alone."""
    monkeypatch.setattr(prefixes, "SHORTEST", 6)
    monkeypatch.setattr(scoring, "SAVING", 1.0)
    model, draw = model_of(small(family)), random.Random(1)
    asked = requests(2, 2)
    for examples in ((7,) * 9, (3, 4, 5, 6) * 3):
        for length in (1, 4, 2):
            context = examples + tuple(draw.randrange(VOCAB) for _ in range(length))
            asked += [Request(context, tuple(draw.randrange(VOCAB) for _ in range(n))) for n in (1, 3, 2)[:length]]
    lots = [shared for shared, _ in scoring._beginnings([Group(r.context, [r.continuation]) for r in asked], call=0)]
    assert len(lots) == 3
    for request, found in zip(asked, score(model, asked, max_length=LENGTH, batch_tokens=90)):
        torch.testing.assert_close(found.log_p, naive(model, request), rtol=1e-6, atol=1e-6)


def test_examples_are_computed_once():
    """Four questions of 2 tokens after 70: 70 + 4 x 2, where one by one it is 4 x 72."""
    model = model_of(small("transformer"))
    asked = [Request((5,) * 70 + (i, 9), (1,)) for i in range(4)]
    seen: list[int] = []
    model.blocks[0].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    score(model, asked, max_length=80)
    assert seen == [70, 4 * 2]
    seen.clear()
    score(model, [Request((i,) * 70 + (1,), (1,)) for i in range(4)], max_length=80)
    assert seen == [4 * 71], "texts that begin otherwise share nothing"
    groups = [Group(r.context, [r.continuation]) for r in asked]
    for call, shares in ((70, True), (80, False)):  # sharing saves 0.8 x 288 - 78 = 152.4 tokens, and two calls cost
        assert bool(next(iter(scoring._beginnings(groups, call)))[0]) == shares


def test_families():
    a, b = (1,) * 100, (2,) * 200
    asked = [a + (1, 2, 3), a + (1, 4), a, b + (7,), b[:80] + (3, 3), (9,) * 300, b + (8,)]
    found = list(prefixes.families(asked))
    assert sorted(context for family in found for context in family.contexts) == sorted(asked)
    assert [(shared, len(contexts)) for shared, contexts in found] == [(99, 3), (200, 2), (0, 1), (0, 1)]
    for shared, contexts in found:
        assert len({context[:shared] for context in contexts}) == 1
        assert all(len(context) > shared for context in contexts)


def test_memory_that_does_not_suffice_after_a_beginning(monkeypatch):
    model = model_of(small("transformer"))
    asked = [Request((5,) * 70 + (i, 9), (1, 2)) for i in range(6)]
    expected = [found.log_p for found in score(model, asked, max_length=80)]
    hidden, rows = Decoder.hidden, []

    def small_memory(self, tokens_BT, *others, **options):
        rows.append(len(tokens_BT))
        if len(tokens_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, tokens_BT, *others, **options)

    monkeypatch.setattr(Decoder, "hidden", small_memory)
    found = score(model, asked, max_length=80)
    assert rows[1] > 2 >= rows[-1]
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.log_p, other, rtol=1e-9, atol=1e-9)


def test_greedy():
    model = model_of(small("transformer"))
    with torch.no_grad():
        best = model(torch.tensor([[1, 2, 3]])).logits[0, -1].argmax().item()
    found = score(model, [Request((1, 2, 3), (best,)), Request((1, 2, 3), (best ^ 1,))], max_length=LENGTH)
    assert [f.greedy for f in found] == [True, False]


@pytest.mark.parametrize("length", [1, 5, 8, 9, 16, 21])
def test_windows_predict_every_token_once(length):
    """Against lm-eval's rule, written out: windows of 8 that do not overlap; the last reaches back to be whole."""
    text = list(range(1, length + 1))
    found = list(windows(text, 0, 8))
    assert [t for r in found for t in r.continuation] == text
    for request in found:
        sequence = [*request.context, *request.continuation]
        assert sequence == list(range(sequence[0], sequence[-1] + 1)) and request.continuation
        assert len(sequence) - 1 <= 8 and len(sequence) - 1 == min(8, sequence[-1])


def test_too_long_is_cut_on_the_left_as_naive_does():
    model = model_of(small("sambay"))
    request = Request(tuple(i % VOCAB for i in range(40)), (1, 2, 3))
    (found,) = score(model, [request], max_length=LENGTH)
    torch.testing.assert_close(found.log_p, naive(model, request), rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="A continuation of 25 tokens is longer than max_length 24"):
        score(model, [Request((1,), (2,) * 25)], max_length=LENGTH)


def test_a_batch_that_does_not_fit_is_made_smaller(monkeypatch):
    model, asked = model_of(small("transformer")), requests(8, 1)
    hidden, rows = model.hidden, []

    def small_memory(tokens_BT: torch.Tensor) -> tuple:
        rows.append(len(tokens_BT))
        if len(tokens_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(tokens_BT)

    monkeypatch.setattr(model, "hidden", small_memory)
    found = score(model, asked, max_length=LENGTH)
    assert rows[0] > 2 >= rows[-1]
    for request, one in zip(asked, found):
        assert len(one.log_p) == len(request.continuation)


def test_logits_that_are_no_numbers():
    """lm-eval would take the first answer for the likeliest, and show an accuracy."""
    model = model_of(small("transformer"))
    with torch.no_grad():
        model.head_weight()[3, 0] = float("nan")
    with pytest.raises(UserError, match="logits are not numbers"):
        score(model, [Request((1, 2), (4,))], max_length=LENGTH)
