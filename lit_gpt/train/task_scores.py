"""Evaluations of the model while it trains (--eval_tasks): those of this project, and lm-eval's tasks.

They draw their own random numbers and change nothing that training reads, so the numbers of a run are the same without
them. Where an evaluation fails, a note says so and training goes on: it can be done again with any checkpoint. The
processes of a run share the questions.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.config.arguments import Argument, arguments_of, check
from lit_gpt.config.bounds import parts, violations
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.run import RunConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer, describe_tokenizer
from lit_gpt.data.remote import is_remote
from lit_gpt.errors import UserError
from lit_gpt.evals.crew import ALONE, Crew
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.results import Metric
from lit_gpt.evals.tasks import TASKS
from lit_gpt.model import GPT
from lit_gpt.parallel.peers import is_of_collective
from lit_gpt.preflight.meta_model import meta_model
from lit_gpt.preflight.resolved_run import ResolvedRun

Found = Mapping[str, Mapping[str, Metric]]  # task -> its figures
FLAGS = " Here such flags stand in --eval_task_options, and max_length is --ctx_len."


class TaskScores:
    """The evaluations of a run, checked before it starts.

    names: of --eval_tasks. folder: with tasks of lm-eval's kind. limit: examples of each of these. options: of this
    project's evaluations. tokenizer: of the training data. config: of the model. crew: the processes of the run.
    Raises UserError where one of these means nothing, or the model or its tokenizer cannot do what is asked.
    """

    def __init__(
        self,
        names: list[str],
        folder: str | None,
        limit: int,
        options: Mapping[str, Mapping[str, Any]],
        tokenizer: KeptTokenizer | None,
        config: ModelConfig,
        crew: Crew = ALONE,
    ):
        if tokenizer is None:
            raise UserError("--eval_tasks: the training data does not say which tokenizer it has; add a meta.json.")
        self.tokenizer, self.folder, self.limit, self.crew = tokenizer, folder, limit, crew
        judged = Judged(meta_model(config), tokenizer)
        self.ours = ours(judged, names, options)
        self.theirs = _theirs(names, self.ours, folder, limit)
        if self.theirs:
            _harness(self.theirs).check_tasks(judged, self.theirs, folder)

    def measure(self, model: GPT, prefix: str) -> tuple[dict[str, float], list[str]]:
        """`<prefix>/<task>/<figure>`, with `_stderr` its standard error; and what went wrong, in sentences."""
        judged, values, said = Judged(model, self.tokenizer, crew=self.crew), dict[str, float](), list[str]()
        # A graph for every length would push out those of training.
        with unchanged_randomness(), torch.compiler.set_stance("force_eager"):
            for ask in (*(_one(name, options) for name, options in self.ours.items()), self._ask_theirs):
                try:
                    with self.crew:
                        found = ask(judged)
                except Exception as error:
                    if is_of_collective(error):  # a process is gone, and training cannot go on either
                        raise
                    said.append(f"warning: no score: {' '.join(str(error).split()) or repr(error)}")
                    continue
                for task, metrics in found.items():
                    for name, metric in metrics.items():
                        values[f"{prefix}/{task}/{name}"] = metric.value
                        if metric.stderr is not None:
                            values[f"{prefix}/{task}/{name}_stderr"] = metric.stderr
        return values, said

    def _ask_theirs(self, judged: Judged) -> Found:
        return _harness(self.theirs).ask(judged, self.theirs, self.folder, self.limit) if self.theirs else {}


def check_before(resolved: ResolvedRun) -> None:
    """What --dry_run can say of --eval_tasks; it fetches no training data. Raises UserError as TaskScores does."""
    run = resolved.run
    local = not is_remote(run.train_data_dir)
    kept = describe_tokenizer(run.train_data_dir, run.data_mixture, run.eos_token_id) if local else None
    judged = Judged(meta_model(resolved.model), kept) if kept else None
    known = ours(judged, run.eval_tasks, run.eval_task_options or {})
    if theirs := _theirs(run.eval_tasks, known, run.eval_tasks_path, run.eval_tasks_limit):
        _harness(theirs).check_tasks(judged, theirs, run.eval_tasks_path, fetch=False)


def ours(judged: Judged | None, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """This project's evaluations among the names, with their Options, all of which the model can be asked.

    judged: None where there are no data yet, so that nothing is known of the latter. Raises UserError as TaskScores.
    """
    found = {name: _options(name, options.get(name, {})) for name in names if name in TASKS}
    if strangers := [name for name in options if name not in found]:
        known = ", ".join(found) or "none"
        raise UserError(f"--eval_task_options names {strangers[0]}; of --eval_tasks, these have options: {known}.")
    for name, given in found.items() if judged else ():
        if check_of := getattr(TASKS.load(name), "check", None):
            try:
                check_of(judged, given)
            except UserError as error:  # it names flags of eval.py
                where = FLAGS if "--" in str(error) else ""
                raise UserError(f"--eval_tasks {name}: {error}{where}") from error
    return found


def _theirs(names: Sequence[str], known: Collection[str], folder: str | None, limit: int) -> list[str]:
    """Those of lm-eval. Raises UserError for an option about them where there are none."""
    theirs = [name for name in names if name not in known]
    if not theirs and (folder or limit != RunConfig.eval_tasks_limit):
        given = "path" if folder else "limit"
        raise UserError(
            f"--eval_tasks_{given} is for tasks of lm-eval, and --eval_tasks names none of them. Drop it; options of "
            "this project's evaluations are --eval_task_options."
        )
    return theirs


def _one(name: str, options: Any) -> Callable[[Judged], Found]:
    return lambda judged: {name: TASKS.load(name).evaluate(judged, options).metrics}


def _options(name: str, given: Mapping[str, Any]) -> Any:
    """The Options of an evaluation. Raises UserError for what it does not take."""
    kind = TASKS.load(name).Options
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    arguments = arguments_of(kind) | {n: Argument(str, "") for n in needed}
    check(f"evaluation {name}", "--eval_task_options", given, arguments)
    if missing := [n for n in needed if n not in given]:
        example = json.dumps({name: dict.fromkeys(missing, "...")})
        raise UserError(f"--eval_tasks {name} needs {', '.join(missing)}; add --eval_task_options '{example}'.")
    paths = {n for n, argument in arguments.items() if Path in parts(argument.hint)}
    options = kind(**{n: Path(v) if n in paths and isinstance(v, str) else v for n, v in given.items()})
    if wrong := violations(options):
        raise UserError(f"--eval_task_options, {name}: {wrong[0]}")
    return options


def _harness(names: list[str]) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        ours = ", ".join(TASKS.names())
        raise UserError(
            f"--eval_tasks {names[0]} is one of lm-eval's; type: pip install -e '.[eval]'. This project's are {ours}."
        )
    return importlib.import_module("lit_gpt.evals.lm_eval_tasks")


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Afterwards all generators are where they were: lm-eval sets the seeds of all of them."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
