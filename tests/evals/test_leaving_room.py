"""An evaluation takes a part of what is free on a GPU, and smaller batches where that does not suffice."""

from __future__ import annotations

import pytest
import torch
from small_models import model_of, small

from lit_gpt.evals import generation
from lit_gpt.evals.memory import Limit, allowed_share, leaving_room

GIB = 2**30


def test_what_others_hold_is_left_alone():
    """Of a GPU of 140 GiB on which another process holds 50, 90 were taken."""
    share = allowed_share(total=140 * GIB, free=88 * GIB, cached=0, used=2 * GIB)
    assert share * 140 == pytest.approx(2 + 0.9 * 88) and share * 140 < 90 - 8
    assert allowed_share(total=140 * GIB, free=0, cached=0, used=2 * GIB) * 140 == pytest.approx(2)
    assert allowed_share(total=10, free=10, cached=0, used=0) == pytest.approx(0.9)


def test_a_second_evaluation_takes_no_more_than_the_first():
    """What the first one left in this process's cache is not added to what the next may have."""
    first = allowed_share(total=100, free=60, cached=0, used=10)
    assert allowed_share(total=100, free=60 - 54, cached=54, used=10) == pytest.approx(first)


def test_on_a_gpu_the_share_holds_within_and_then_ends(monkeypatch):
    shares = [0.95]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: shares[-1])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))
    with pytest.raises(ValueError, match="in it"), leaving_room(torch.device("cuda", 0)):
        raise ValueError("in it")
    assert shares == [0.95, pytest.approx(0.1 + 0.9 * 0.7), 0.95]


def test_the_next_batch_is_half_as_large():
    limit = Limit(1000)

    def too_much() -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert limit.attempt(too_much, size=64, single=False) is None and limit.most == 32
    assert limit.attempt(list, size=32, single=False) == [] and limit.most == 32
    with pytest.raises(torch.OutOfMemoryError):
        limit.attempt(too_much, size=1, single=True)


def test_texts_of_a_batch_that_does_not_fit(monkeypatch):
    """Scoring tried again with less, and generation ended."""
    model, prompts = model_of(small("transformer")), [[1, 2, 3, i] for i in range(7)]
    expected, stream, rows = generation.generate(model, prompts, 5), generation.stream, []

    def small_memory(model, prompts_BT, *others, **options):
        rows.append(len(prompts_BT))
        if len(prompts_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stream(model, prompts_BT, *others, **options)

    monkeypatch.setattr(generation, "stream", small_memory)
    assert generation.generate(model, prompts, 5) == expected
    assert rows == [7, 3, 1, 1, 1, 1, 1, 1, 1]
