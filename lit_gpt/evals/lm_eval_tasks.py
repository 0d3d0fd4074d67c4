"""lm-eval's tasks: what can go wrong with them in a sentence, their figures, and asking a model that is there."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from lit_gpt.errors import UserError
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.lm_eval_model import TrainedModel
from lit_gpt.evals.results import Metric
from lit_gpt.evals.soft import soft_metrics
from lit_gpt.utils.launcher import world_size

Config = tuple[str, Mapping[str, Any]]  # the name of a task, and its description
NOT_FOUND = "Tasks not found"
# What lm-eval says of what was typed -> what to do.
ADVICE = {
    "Duplicate task": "Say each task once.",  # of a group, and by its own name
    NOT_FOUND: "Type `python eval.py ls tasks`, or {option} and their folder.",
    "No tasks specified": "Give --tasks NAME,NAME; `python eval.py ls tasks` lists them.",
    "chat templates": "A pretrained model has no chat template: leave --apply_chat_template out.",
    "Elements of --samples": "Correct --samples.",
    "Specify --output_path": "Type --output_path FOLDER.",
    "When `fewshot_as_multiturn`": "Leave --fewshot_as_multiturn out.",
    "Invalid YAML in": "Correct the file of --config.",
    "then --limit must be None": "Give --limit or --samples, and not both.",
    "Expected YAML dict": "Write a task into that file, or give another.",
    "Sample larger than population": "Give a --num_fewshot below the number of examples of the task.",
    "Attempted to load model": "A model of this project is --model ArchScale.",
}


def check_tasks(judged: Judged | None, names: Sequence[str], folder: str | None, fetch: bool = True) -> None:
    """Raises UserError for tasks that are not there, or that the model cannot be asked, and for data that cannot be
    fetched.

    judged: None where nothing is known of the latter. fetch: whether data may be; else only the files of the tasks are
    read.
    """
    with understood_tasks("--eval_tasks_path", folder):
        manager = TaskManager(include_path=folder)
        if unknown := [name for name in names if not manager.match_tasks([name])]:
            raise ValueError(f"{NOT_FOUND}: {', '.join(unknown)}")

        def described(wanted: list[str]) -> list[Config]:
            if fetch:
                return configs_of(manager.load(wanted))
            return [found for name in wanted for found in _written(manager.task_index, name)]

        configs = loaded_tasks(described, list(names))
        if judged:
            check_generation(TrainedModel(judged), configs)


def check_generation(model: TrainedModel, configs: Iterable[Config], given: Mapping[str, Any] | None = None) -> None:
    """Raises UserError for a task that asks for texts in a way that is not followed: lm-eval asks for them last.

    given: of --gen_kwargs.
    """
    for name, config in configs:
        if config.get("output_type") == "generate_until":
            try:
                model.way_of_generating({**(config.get("generation_kwargs") or {}), **(given or {})})
            except UserError as error:
                raise UserError(f"The task {name}: {error}") from error
            except (TypeError, ValueError) as error:
                why = f"{type(error).__name__}: {_words(error)}"
                raise UserError(f"The task {name} cannot be asked for texts ({why}). Correct its file.") from error


def configs_of(loaded: Mapping[str, Any]) -> list[Config]:
    """The descriptions of tasks that are loaded."""
    keys = "output_type", "generation_kwargs"
    return [(name, {key: task.get_config(key) for key in keys}) for name, task in loaded["tasks"].items()]


def _written(index: Mapping[str, Entry], name: str, over: Mapping[str, Any] | None = None) -> Iterator[Config]:
    """The descriptions of a task, or of those of a group or tag, as their files have them. over: of the group, where a
    task or another group may be described, too. What is missing is said when the data are there.
    """
    entry, over = index.get(name), over or {}
    config = (entry.cfg if entry else None) or {}
    members = sorted(entry.tags) if entry and entry.kind is Kind.TAG else config.get("task") or over.get("task")
    if not isinstance(members, list):
        yield name, {**config, **over}
        return
    for member in members:
        own = member if isinstance(member, dict) else {"task": member}
        yield from _written(index, str(own.get("group") or own.get("task")), {**over, "task": None, **own})


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
def understood_tasks(option: str, folder: str | None = None) -> Iterator[None]:
    """Errors about tasks and their data as a UserError. option: which names a folder with tasks of the user's own.

    folder: the one that was named.
    """
    try:
        yield
    except Exception as error:
        if (said := _sentence(error, option, folder)) is None:
            raise
        raise UserError(said) from error


def loaded_tasks(load: Callable[[Any], Any], names: Any) -> Any:
    """load(names), of a TaskManager. What a wrong file or damaged data raises there is a UserError that names the task.

    What understood_tasks knows goes on, and so do errors of the system that name a file.
    """
    try:
        return load(names)
    except Exception as error:
        known = isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)
        if known or _sentence(error, "", None) is not None:
            raise
        cause = error
        while cause.__cause__ is not None:  # datasets says why in the errors behind its own
            cause = cause.__cause__
        wrong, where = _at(error, cause)
        why = f"{type(cause).__name__}: {_words(cause)}{where}"
        raise UserError(f"{wrong or _asked(names)} cannot be loaded ({why}). Correct its file, or its data.") from error


def _at(error: BaseException, cause: BaseException) -> tuple[str, str]:
    """The task that lm-eval was making, of a group one of its own, and the line of its functions that failed.

    Each is "" where nothing says it.
    """
    entries: list[Any] = [frame.f_locals.get("entry") for frame, _ in traceback.walk_tb(error.__traceback__)]
    made: list[Any] = [entry for entry in entries if isinstance(entry, Entry)]
    if not made:
        return "", ""
    folder = made[-1].yaml_path and Path(made[-1].yaml_path).resolve().parent
    lines = [f for f in traceback.extract_tb(cause.__traceback__) if folder and Path(f.filename).parent == folder]
    return f"The task {made[-1].name}", f", in {lines[-1].filename}, line {lines[-1].lineno}" if lines else ""


def _asked(names: Any) -> str:
    return f"One of the tasks {', '.join(map(str, names))}" if isinstance(names, list) else f"The task {names}"


def _sentence(error: Exception, option: str, folder: str | None) -> str | None:
    """What an error of lm-eval means for a person; None where nobody here knows."""
    if isinstance(error, ConnectionError):  # of datasets, which is also an OSError
        return (
            f"The data of a task could not be fetched ({error}). Fetch it where there is a network, with the same "
            f"command; or give tasks of your own: {option} FOLDER."
        )
    if isinstance(error, ImportError):
        return f"A task needs a package that is not here: {_words(error)}"
    if isinstance(error, yaml.YAMLError):
        return f"A task's file is no YAML ({_words(error)}). Correct it."
    if not isinstance(error, ValueError | NotImplementedError | AssertionError | StopIteration):
        return None
    text = str(error)
    if isinstance(error, StopIteration) or "did not find any docs" in text:  # of datasets, for an empty file
        return _no_examples(world_size())
    for begin, advice in ADVICE.items():
        if begin in text:
            return f"{text.strip().rstrip('.')}.{_unread(begin, folder)} {advice.format(option=option)}"
    return None


def _unread(begin: str, folder: str | None) -> str:
    """Why a task may not be found: lm-eval leaves out in silence what it cannot read of the user's folder."""
    if begin != NOT_FOUND or folder is None:
        return ""
    if not Path(folder).is_dir():
        return f" There is no folder {folder}."
    for file in sorted(Path(folder).glob("**/*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:
            return f" {file} cannot be read ({_words(error)})."
    return ""


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())


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
