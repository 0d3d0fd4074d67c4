"""--keep_best and a kill at every point of the save of a better checkpoint: the best one is always there, and alone."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from small_run import META, Alone, Run, die_before, step
from spawn import start

from lit_gpt.checkpoint import Checkpointer, damage
from lit_gpt.checkpoint.retention import LOSS


def save(run: Run, number: int, loss: float | None = None) -> None:
    """As Run.save, with a validation loss."""
    run.saver = run.saver or Checkpointer(run.checkpoints, Alone(), keep_last=1, keep_best=True, async_save=False)
    for p in run.model.parameters():
        p.data.fill_(number)
        run.optimizer.state[p]["momentum_buffer"] = torch.full_like(p, number)
    run.saver.save(number, run.model, run.optimizer, {**META, "validation": {} if loss is None else {LOSS: loss}})


def save_and_die(folder: Path, point: int) -> None:
    """Publish a better checkpoint than that of step 1; die before the point-th change of that, or leave with 7."""
    torch.set_num_threads(1)
    run = Run(folder)
    save(run, 1, 3.0)
    save(run, 2)
    die_before(point)
    save(run, 3, 2.0)
    os._exit(7)


def test_a_kill_at_any_point_leaves_a_best_one_and_the_next_save_tidies(tmp_path: Path) -> None:
    seen = set()
    for first in range(1, 100, 4):
        dead = {point: start(save_and_die, tmp_path / str(point), point) for point in range(first, first + 4)}
        for process in dead.values():
            process.join()
        for point, process in dead.items():
            assert process.exitcode in (7, 9), point
            run = Run(tmp_path / str(point))
            published = step(3) in run.names()
            left = tuple(name for name in run.names() if name.startswith("step-"))
            seen.add(left)
            assert (step(3) if published else step(1)) in left, point
            save(run, 4)
            assert run.names() == [step(3) if published else step(1), step(4)], point
            assert run.saver is not None and run.saver.improves({LOSS: 1.9}), point
            assert run.saver.improves({LOSS: 2.5}) == (not published), point
            assert not any(damage(run.checkpoints / name) for name in run.names()), point
        if any(process.exitcode == 7 for process in dead.values()):
            expected = {(step(1), step(2)), (step(1), step(2), step(3)), (step(2), step(3)), (step(3),)}
            assert seen == expected, "each state between the two was met"
            return
    raise AssertionError("it never ended")
