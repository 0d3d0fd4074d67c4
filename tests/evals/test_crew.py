"""Processes that share questions: the answers of one, and an error of one is an error of all, which end together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from spawn import run_distributed

from lit_gpt.evals.crew import ALONE, Failed, join

ASKED = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("d", 5), ("b", 6), ("e", 7)]


def double(asked: list[tuple[str, int]]) -> list[int]:
    return [2 * number for _, number in asked]


def several() -> dict[str, Any]:
    """One evaluation after the other, in each of which something else goes wrong; what each process was left with."""
    together, found = join(), dict[str, Any]()
    own: list[tuple[str, int]] = []

    def remembered(asked: list[tuple[str, int]]) -> list[int]:
        own.extend(asked)
        return double(asked)

    def failing(asked: list[tuple[str, int]]) -> list[int]:
        if ("b", 2) in asked:
            raise RuntimeError("out of memory")
        return double(asked)

    def before() -> Any:
        if together.rank == 1:
            raise ValueError("no such file")
        return together.divide(ASKED, double)

    cases: dict[str, Callable[[], Any]] = {
        "fine": lambda: together.divide(ASKED, remembered, lambda question: question[0]),
        "in it": lambda: together.divide(ASKED, failing),
        "none": lambda: together.divide([], double),
        "before it": before,
        "after it": lambda: together.divide(ASKED, double) if together.rank else 1 / 0,
        "differs": lambda: together.divide(ASKED[together.rank :], double),
        "fine again": lambda: together.divide(ASKED, double),
    }
    for name, ask in cases.items():
        try:
            with together:
                found[name] = ask()
        except Failed as error:
            found[name] = str(error)
    gloo = cast(Any, dist.group.WORLD)._get_backend(torch.device("cpu"))
    return found | {"own": own, "threads": gloo.options._threads}


def test_answers_and_errors_are_everyones():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    everyone = run_distributed(several, 3)
    for found in everyone:
        assert found["fine"] == found["fine again"] == double(ASKED) and found["none"] == []
        assert found["in it"] == "out of memory" and found["before it"] == "no such file"
        assert found["after it"] == "division by zero"
        assert found["threads"] == 1, "see parallel/gloo.py"
        assert found["differs"].startswith("the processes do not ask the same questions")
    own = [found["own"] for found in everyone]
    assert sorted(question for mine in own for question in mine) == sorted(ASKED), "each is answered once"
    assert all(mine for mine in own) and {("a", 1), ("a", 3)} <= set(own[0]), "and by its key"


def test_alone_an_error_stays_what_it_is():
    assert ALONE.divide(ASKED, double) == double(ASKED)
    with pytest.raises(ZeroDivisionError), ALONE:
        ALONE.divide(ASKED, lambda asked: [1 // 0 for _ in asked])
