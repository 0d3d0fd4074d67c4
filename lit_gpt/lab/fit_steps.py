"""What a law is fitted to, and the logged steps of runs with their learning rates, past and to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.run_files import RunFiles
from lit_gpt.lab.runs import COLUMNS, Run
from lit_gpt.metrics.labels import axis_label
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.scaling.base import Schedule
from lit_gpt.scaling.law import RUN, Data
from lit_gpt.scaling.schedule import fraction

LOSS, RATE = "metric/train_loss", "metric/weight_learning_rate"
FUTURE = 200  # steps to come, whose rates the plan says: enough to follow any schedule


@dataclass(frozen=True)
class Sample:
    """What a law is fitted to. data: by symbol. names: the run of each point. reads: symbol -> column.

    mixed: what else differs between runs that the law takes for repetitions of each other.
    """

    runs: Sequence[Run]
    data: Data
    names: Sequence[str]
    reads: Mapping[str, str]
    notes: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()

    def words(self, symbol: str) -> str:
        """A column in words."""
        return words(self.reads[symbol])


def words(name: str) -> str:
    """A column in words and units."""
    return COLUMNS.get(name) or axis_label(name)


def logged_steps(runs: Sequence[Run], reads: Mapping[str, str]) -> Sample:
    """Steps, rate and loss of every logged step, and of steps to come, whose loss is NaN.

    The loss is the training loss unless another metric is read, as the validation loss is measured too seldom.
    """
    key = LOSS if reads["loss"] == "loss" else reads["loss"]
    parts, names = {symbol: list[np.ndarray]() for symbol in ("steps", "rate", "loss", RUN)}, list[str]()
    for number, run in enumerate(runs):
        points = _points(run, key)
        for symbol, values in (*points.items(), (RUN, np.full(len(points["steps"]), float(number)))):
            parts[symbol].append(values)
        names += [run.name] * len(points["steps"])
    data = {symbol: np.concatenate(values) for symbol, values in parts.items()}
    return Sample(runs, data, names, {"steps": "steps", "rate": RATE, "loss": key})


def _points(run: Run, key: str) -> dict[str, np.ndarray]:
    if run.folder is None:
        raise UserError(f"{run.name} has no training curve. This law needs run folders.")
    found = read_metrics(run.folder)
    if key not in found or RATE not in found:
        raise UserError(f"{run.name} has logged no {key if key not in found else RATE}, which this law reads.")
    there = np.isfinite(found[RATE]) & np.isfinite(found[key])
    steps, rate, loss = found["step"][there], found[RATE][there], found[key][there]
    ahead, rates = _to_come(run, steps.max(initial=0.0))
    unknown = np.full(len(ahead), np.nan)
    return {"steps": np.r_[steps, ahead], "rate": np.r_[rate, rates], "loss": np.r_[loss, unknown]}


def _to_come(run: Run, done: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps after the last logged one, and their rates, by the plan; none where the plan does not say."""
    assert run.folder is not None
    plan = RunFiles(run.folder).plan
    if not plan or plan.get("batch_ramp", 1) != 1 or done >= plan["steps"]:
        return np.array([]), np.array([])
    steps = np.unique(np.linspace(done, plan["steps"], FUTURE + 1).round())[1:]
    schedule, peak = Schedule.from_dict(plan["schedule"]), plan["roles"]["matrix"]["lr"]
    return steps, np.array([peak * fraction(schedule, step * plan["batch_tokens"]) for step in steps])
