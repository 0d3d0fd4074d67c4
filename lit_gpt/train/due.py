"""What is measured after a step. What a signal cuts off is owed: the checkpoint says so, and a resume does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.checkpoint.retention import VALIDATION
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError

# --eval_sequences of the validation data; all of them; --eval_tasks.
SEQUENCES, ALL_DATA, TASKS = "sequences", "all data", "tasks"
OWED = "owed"  # of meta.json: which of these were due at its step and are not measured


def due(run: RunConfig, step: int, finished: bool, decayed: bool) -> list[str]:
    """What is measured after `step`. finished: the budget is spent. decayed: a decay ended with it."""
    at_last = finished and "last" in run.full_eval_at
    asked = {
        SEQUENCES: finished or decayed or step % run.eval_step == 0,
        ALL_DATA: at_last or str(step) in run.full_eval_at,
        TASKS: finished or step % (run.eval_tasks_step or run.eval_step) == 0,
    }
    return [name for name, is_due in asked.items() if is_due]


def possible(asked: list[str], data: bool, tasks: bool) -> list[str]:
    """Those for which the run has validation data, or tasks."""
    return [name for name in asked if (tasks if name == TASKS else data)]


def owed(meta: Mapping[str, Any], finished: bool) -> list[str]:
    """What is still to be measured after the step of a checkpoint. Earlier ones owe a last validation at most."""
    if OWED in meta:
        return [name for name in (SEQUENCES, ALL_DATA, TASKS) if name in meta[OWED]]
    return [SEQUENCES] if finished and not meta.get(VALIDATION) else []


def check_reached(asked: list[str], last: int) -> None:
    """Raise UserError for a step of --full_eval_at that the run does not have."""
    if late := [step for step in asked if step != "last" and int(step) > last]:
        raise UserError(
            f"--full_eval_at names step {late[0]}, and this run ends with step {last:,}; type last for that."
        )
