"""Which steps are skipped: against a naive version in plain Python, after a restart, without reading the device."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch
from spawn import run_distributed

from lit_gpt.parallel import GradNorms, start_runtime
from lit_gpt.train.guard import WINDOW, StepGuard

Numbers = list[tuple[float, float]]  # loss and gradient norm of every step


def noisy(steps: int, seed: int) -> Numbers:
    """A falling loss with spikes of both, and some that are not finite."""
    draw = random.Random(seed).random
    found = []
    for i in range(steps):
        loss, norm = 5 / (1 + i / 100) + 0.1 * draw(), 1 + 0.2 * draw()
        loss += 4 * (draw() < 0.03)
        norm = math.nan if draw() < 0.02 else norm * (9 if draw() < 0.03 else 1)
        found.append((loss, norm))
    return found


def naive(numbers: Numbers, sigmas: float) -> list[bool]:
    """The rule of the docstring, one step after the other, on Python's floats."""
    past: Numbers = []
    skipped = []
    for now in numbers:
        skip = not math.isfinite(now[1])
        if not skip and len(past) >= WINDOW // 2:
            for value, old in zip(now, zip(*past)):
                skip |= value - statistics.fmean(old) > sigmas * statistics.stdev(old)
        skipped.append(skip)
        past = past if skip else [*past, now][-WINDOW:]
    return skipped


def norms(value: float) -> GradNorms:
    total = torch.tensor(value)
    return GradNorms(total, total, total, torch.tensor([1.0, value]), ("head", "matrix"))


def decide(guard: StepGuard, numbers: Numbers, first: int = 1) -> list[bool]:
    share = guard.runtime.world_size
    found = []
    for step, (loss, norm) in enumerate(numbers, first):
        found.append(guard.skip(step, torch.tensor(loss / share), norms(norm)).item() == 1)
    return found


def rounded(numbers: Numbers) -> Numbers:
    return [(torch.tensor(a).item(), torch.tensor(b).item()) for a, b in numbers]


@pytest.mark.parametrize("sigmas", [3.0, 6.0])
def test_spikes_against_plain_python(sigmas):
    numbers = rounded(noisy(700, seed=1))
    expected = naive(numbers, sigmas)
    assert 20 < sum(expected) < 200
    assert decide(StepGuard(start_runtime(), 10, sigmas), numbers) == expected


def test_a_restart_decides_alike():
    numbers = noisy(400, seed=2)
    whole = decide(StepGuard(start_runtime(), 10, 4.0), numbers)
    first = StepGuard(start_runtime(), 10, 4.0)
    parts = decide(first, numbers[:150])
    state = json.loads(json.dumps(first.state()))
    assert parts + decide(StepGuard(start_runtime(), 10, 4.0, state), numbers[150:], 151) == whole
    assert decide(StepGuard(start_runtime(), 10, 0.0, state), [(99.0, 99.0)]) == [False], "the option may be dropped"


def on_each_rank(numbers: Numbers) -> list[bool]:
    return decide(StepGuard(start_runtime(), 10, 4.0), numbers)


def test_two_ranks_decide_alike():
    """Each has half of the loss."""
    numbers = noisy(150, seed=3)
    first, second = run_distributed(on_each_rank, 2, numbers)
    assert first == second == decide(StepGuard(start_runtime(), 10, 4.0), numbers)


def test_the_limit_and_what_is_said():
    """One finite step in between starts the count again; after the limit nothing is taken any more."""
    guard = StepGuard(start_runtime(), 3, 0.0)
    bad = math.inf
    assert decide(guard, [(1, bad), (1, bad), (1, 1), (1, bad), (1, bad)]) == [True, True, False, True, True]
    assert not guard.ended(6, last=False)
    assert decide(guard, [(1, bad), (1, 1), (1, 1)], 6) == [True] * 3
    assert not guard.ended(8, last=False) and guard.ended(9, last=False)
    assert guard.why(8) == (
        "Steps 4 to 6 were skipped one after the other (--max_skips 3): in step 6 the gradients of role matrix were "
        "not finite. The weights are those after step 3."
    )
    assert decide(StepGuard(start_runtime(), 3, 0.0, guard.state()), [(1, 1)]) == [False], "who resumes wants to try"


def test_a_run_that_trained_nothing_is_ended_at_its_last_step():
    guard = StepGuard(start_runtime(), 10, 0.0)
    decide(guard, [(1, math.nan)] * 4)
    assert not guard.ended(4, last=False) and guard.ended(4, last=True)


def test_a_decision_does_not_wait_for_the_device():
    """Tensors without values, as on the meta device, cannot be read: nothing here tries."""
    runtime = start_runtime()
    object.__setattr__(runtime, "device", torch.device("meta"))
    guard = StepGuard(runtime, 3, 6.0)
    total = torch.zeros((), device="meta")
    each = torch.zeros(2, device="meta")
    for step in (1, 2, 4):
        guard.skip(step, total, GradNorms(total, total, total, each, ("head", "matrix")))
        assert not guard.ended(step, last=False)
