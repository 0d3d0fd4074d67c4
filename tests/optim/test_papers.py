"""Optimizers of libraries against the pseudo-code of their papers in float64: what libraries leave to the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
from small_optimizers import DECAY, LR, SHAPES, Bag, build, gradients, plan_for
from test_external import skip_if_missing

from lit_gpt.errors import UserError
from lit_gpt.optim import check_arguments
from lit_gpt.scaling.base import Plan

Array = np.ndarray
BETA1, BETA2 = 0.9, 0.95  # of plan_for
STEPS = 60  # 1 - t^-0.8 is above 0.95 from step 43 on


def adafactor(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    """Algorithms 4 and 5 of arXiv:1804.04235 with beta2 = 1 - t^-0.8, a momentum of the steps, and no relative rate."""
    beta2, square, w = 1 - t**-0.8, g**2 + 1e-30, (1 - LR * DECAY) * w
    means = [square.mean(1), square.mean(0)] if g.ndim == 2 else [square]
    s["v"] = [beta2 * old + (1 - beta2) * new for old, new in zip(s.get("v", [0.0, 0.0]), means)]
    v = np.outer(*s["v"]) / s["v"][0].mean() if g.ndim == 2 else s["v"][0]
    u = g / np.sqrt(v)
    s["m"] = BETA1 * s.get("m", 0.0) + (1 - BETA1) * LR * u / max(1.0, sqrt((u**2).mean()))
    return w - s["m"]


def adamp(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    """Algorithm 2 of arXiv:2006.08217, delta = 0.1; a decay of a projected step is a tenth, as in its appendix."""
    s["m"] = BETA1 * s.get("m", 0.0) + (1 - BETA1) * g
    s["v"] = BETA2 * s.get("v", 0.0) + (1 - BETA2) * g**2
    p, ratio = s["m"] / (1 - BETA1**t) / (np.sqrt(s["v"] / (1 - BETA2**t)) + 1e-8), 1.0
    for rows in (len(w), 1) if w.ndim > 1 else ():  # each row by itself, else the whole matrix
        x, y, z = (a.reshape(rows, -1) for a in (w, g, p))
        lengths = [np.linalg.norm(a, axis=1) for a in (x, y)]
        if (np.abs((x * y).sum(1)) / (lengths[0] * lengths[1])).max() < 0.1 / sqrt(x.shape[1]):
            unit = x / lengths[0][:, None]
            p, ratio = (z - unit * (unit * z).sum(1, keepdims=True)).reshape(p.shape), 0.1
            break
    return (1 - LR * DECAY * ratio) * w - LR * p


@pytest.mark.parametrize("step", [adafactor, adamp], ids=lambda step: step.__name__)
def test_is_that_of_its_paper(step: Callable[[Array, Array, dict[str, Any], int], Array]) -> None:
    """Adafactor's beta2 stopped at that of the Plan, and AdamP's wd_ratio did not act: 5e-4 and 5e-2 at the end.

    fp32 rounds weights of about 4 by 2e-7 a step.
    """
    skip_if_missing(step.__name__)
    bag = Bag()
    optimizer = build(bag, step.__name__)
    expected = {name: bag.get_parameter(name).detach().numpy().astype(np.float64) for name in ("wide", "tall", "gain")}
    states: dict[str, dict[str, Any]] = {name: {} for name in expected}
    for t in range(1, STEPS + 1):
        for name, g in gradients(t).items():
            bag.get_parameter(name).grad = g
        for name, w in expected.items():
            expected[name] = step(w, gradients(t)[name].numpy().astype(np.float64), states[name], t)
        optimizer.step()
    for name, w in expected.items():
        assert np.abs(bag.get_parameter(name).detach().numpy() - w).max() < 5e-5, name


def prodigys(**factors: float) -> Plan:
    """A Plan in which some roles have a rate of their own."""
    plan = plan_for("prodigy", counts={role: 1 for role, _ in SHAPES.values()}, steps=20)
    roles = {name: replace(role, lr=role.lr * factors.get(name, 1.0)) for name, role in plan.roles.items()}
    return replace(plan, roles=roles)


def test_prodigy_has_one_rate() -> None:
    """It took that of the token table for all weights, whatever the Plan said of the others."""
    skip_if_missing("prodigy")
    check_arguments(prodigys())
    for refused in (lambda plan: build(Bag(), "prodigy", plan), check_arguments):
        with pytest.raises(UserError, match=r"embedding 0.03, .*matrix 0.015.* --parameterization sp or plain"):
            refused(prodigys(matrix=0.5))
    check_arguments(prodigys(value_table=0.5))  # the model has none
