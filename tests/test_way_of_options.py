"""The way of a run's options stays short: a function takes the values that it needs, not the whole run."""

from __future__ import annotations

from way_of_options import upward, way

FUNCTIONS, RETURNS = 30, 3  # this counter gave 48 and 5 before functions took values


def test_the_way_of_the_options_is_short() -> None:
    steps = way()
    assert steps[0] == "pretrain.py:run" and steps[-1] == "lit_gpt/train/loop.py:Trainer.step"
    listed = "\n".join(steps)
    assert len(steps) <= FUNCTIONS, f"{len(steps)} functions receive the options. Hand on values instead:\n{listed}"
    assert len(upward(steps)) <= RETURNS, "\n".join(upward(steps))
