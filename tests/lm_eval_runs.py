"""lm-eval on the local tasks of tests/evals: its own `hf` model and ours, and what each of them answered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

TASKS = ["local_choices", "local_rolling", "local_generate"]


def evaluate(tasks: Path, model: Any, **options: Any) -> dict[str, Any]:
    """lm-eval without its command line, which reads ten thousand task files at every start."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=TASKS, task_manager=manager, log_samples=True, bootstrap_iters=0, **options
    )


def ours(trained: Path, **options: Any) -> Any:
    """A run as lm-eval's model; imported late, as its base class is lm-eval's or a stand-in."""
    from lit_gpt.evals.lm_eval_model import TrainedModel

    return TrainedModel.load(str(trained), device="cpu", **options)


def answers(found: dict[str, Any]) -> dict[str, list[Any]]:
    """By task, the log-likelihood of every request or every generated text, in the order of the documents."""
    samples = {task: sorted(found["samples"][task], key=lambda s: s["doc_id"]) for task in TASKS}
    answered = {task: [resp[0] for sample in of for resp in sample["resps"]] for task, of in samples.items()}
    return {task: [v[0] if isinstance(v, tuple | list) else v for v in of] for task, of in answered.items()}


def check_equal(found: dict[str, list[Any]], expected: dict[str, list[Any]], tolerance: float) -> None:
    """Answers by task: texts are equal, and log-likelihoods but for a tolerance."""
    for task in TASKS[:2]:
        pairs = zip(found[task], expected[task], strict=True)
        assert all(math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs), task
    assert found[TASKS[2]] == expected[TASKS[2]]
    assert any(found[TASKS[2]]), "something was generated"
