"""lm-eval's tasks: what can go wrong with them in a sentence, their figures, and asking a model that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from lit_gpt.errors import UserError
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.lm_eval_model import TrainedModel
from lit_gpt.evals.results import Metric
from lit_gpt.evals.soft import soft_metrics

# What lm-eval says of what was typed -> what to do.
ADVICE = {
    "Duplicate task": "Say each task once.",  # of a group, and by its own name
    "Tasks not found": "Type `python eval.py ls tasks`, or {option} and their folder.",
    "No tasks specified": "Give --tasks NAME,NAME; `python eval.py ls tasks` lists them.",
    "chat templates": "A pretrained model has no chat template: leave --apply_chat_template out.",
    "Elements of --samples": "Correct --samples.",
    "Specify --output_path": "Type --output_path FOLDER.",
    "When `fewshot_as_multiturn`": "Leave --fewshot_as_multiturn out.",
    "Invalid YAML in": "Correct the file of --config.",
    "then --limit must be None": "Give --limit or --samples, and not both.",
    "Attempted to load model": "A model of this project is --model ArchScale.",
}


def check_tasks(names: Sequence[str], folder: str | None) -> None:
    """Raises UserError for tasks that are not there, and for data that cannot be fetched."""
    with understood_tasks("--eval_tasks_path"):
        manager = TaskManager(include_path=folder)
        if unknown := [name for name in names if not manager.match_tasks([name])]:
            raise ValueError(f"Tasks not found: {', '.join(unknown)}")
        manager.load(list(names))


def ask(judged: Judged, names: Sequence[str], folder: str | None, limit: int) -> dict[str, dict[str, Metric]]:
    """Task -> its figures on the first `limit` examples. folder: with tasks of the user's own. Errors as above.

    {} in a process whose LOCAL_RANK is not 0, to which lm-eval gives no figures.
    """
    with understood_tasks("--eval_tasks_path"):
        results: Any = getattr(lm_eval, "simple_evaluate")(  # noqa: B009 (made when it is first asked for)
            model=TrainedModel(judged),
            tasks=list(names),
            task_manager=TaskManager(include_path=folder),
            limit=limit,
            bootstrap_iters=0,  # of standard errors that are not those of means, which cost seconds
        )
    return {task: metrics for task, (_, metrics) in figures_of(results or {"results": {}}).items()}


@contextmanager
def understood_tasks(option: str) -> Iterator[None]:
    """Errors about tasks and their data as a UserError. option: which names a folder with tasks of the user's own."""
    try:
        yield
    except ConnectionError as error:  # of datasets, which is also an OSError
        raise UserError(
            f"The data of a task could not be fetched ({error}). Fetch it where there is a network, with the same "
            f"command; or give tasks of your own: {option} FOLDER."
        ) from error
    except ImportError as error:
        raise UserError(f"A task needs a package that is not here: {' '.join(str(error).split())}") from error
    except (ValueError, NotImplementedError, AssertionError, StopIteration) as error:
        text = str(error)
        if isinstance(error, StopIteration) or "did not find any docs" in text:  # of datasets, for an empty file
            raise UserError(_no_examples(int(os.environ.get("WORLD_SIZE", 1)))) from error
        for begin, advice in ADVICE.items():
            if begin in text:
                raise UserError(f"{text.strip().rstrip('.')}. {advice.format(option=option)}") from error
        raise


def _no_examples(processes: int) -> str:
    if processes > 1:  # lm-eval wants each process to have one
        return f"A task has fewer examples than there are processes ({processes}). Start fewer, or raise --limit."
    return "A task has no examples. Look at its data, and at --limit."


def figures_of(results: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, Metric]]]:
    """Task -> number of examples, and its figures with soft metrics. A group has none: its tasks do."""
    found = {}
    for task, values in results["results"].items():
        examples = results.get("n-samples", {}).get(task, {}).get("effective")
        if examples is not None:
            metrics = metrics_of(values, results.get("higher_is_better", {}).get(task, {}))
            found[task] = examples, metrics | soft_metrics(results["samples"].get(task, []))
    return found


def metrics_of(found: Mapping[str, Any], higher: Mapping[str, bool]) -> dict[str, Metric]:
    """lm-eval's `acc,none` and `acc_stderr,none` as one Metric each; the filter is named where there is one."""
    metrics = {}
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if name == "bypass" or (name.isdecimal() and value == -1):  # of --predict_only; of a length nobody asked for
            continue
        error = found.get(f"{name}_stderr,{kind}")
        better = "higher" if higher.get(name, True) else "lower"
        full = name if kind == "none" else f"{name} ({kind})"
        metrics[full] = Metric(float(value), error if isinstance(error, int | float) else None, better)
    return metrics
