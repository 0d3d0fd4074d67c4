"""lm-eval's command line with our model in it; every task's result is also kept beside the run."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import lm_eval
from lm_eval._cli import HarnessCLI
from lm_eval.tasks import TaskManager
from lm_eval.utils import setup_logging

from lit_gpt.errors import NotWritten, UserError
from lit_gpt.evals.hf_tokenizer import write_tokenizer
from lit_gpt.evals.lm_eval_model import NEW_TOKENS, TrainedModel
from lit_gpt.evals.lm_eval_tasks import check_generation, configs_of, figures_of, loaded_tasks, understood_tasks
from lit_gpt.evals.model_tokenizer import find_tokenizer
from lit_gpt.evals.results import Result, save
from lit_gpt.utils.files import told

NAMES = ("ArchScale", "scalelab")
SETTINGS = ("num_fewshot", "limit", "gen_kwargs", "system_instruction", "fewshot_as_multiturn", "fewshot_random_seed")


def main(argv: list[str]) -> int:
    """Run lm-eval with these words. Raises UserError for tasks that are not there, and data that cannot be fetched."""
    evaluate = getattr(lm_eval, "simple_evaluate")  # noqa: B009 (made when it is first asked for)

    def recorded(**options: Any) -> Any:
        """As lm-eval evaluates; the examples, which soft metrics are made of, go again where nobody asked for them."""
        if options["model"] not in NAMES:
            return evaluate(**options)
        if options["limit"] is not None and not 0 < options["limit"] < math.inf:
            raise UserError(f"--limit is {options['limit']:g}; give a number of examples, or a share of them below 1.")
        _check_output(options["evaluation_tracker"])
        model = _model(options, any(word.partition("=")[0] == "--device" for word in argv))
        if options["use_cache"] is not None:
            options["use_cache"] = cache_of(model, options["use_cache"])
        with TemporaryDirectory() as folder:
            _lend_tokenizer(model, options["task_manager"].metadata, Path(folder))
            _check_as_they_load(options["task_manager"], model, options["gen_kwargs"], options["samples"])
            results = evaluate(**options | {"model": model, "log_samples": True})
        if results is not None:
            if not options["predict_only"]:  # its result has no figures of the task, and would replace one that has
                try:
                    keep(model, results, options)
                except NotWritten as error:  # the figures are printed first: hours may have gone into them
                    lost.append(error)
            if not options["log_samples"]:
                results.pop("samples")
        return results

    lost: list[NotWritten] = []
    setup_logging()
    sys.argv = ["eval.py", *argv]  # lm-eval's parser reads its words from there
    setattr(lm_eval, "simple_evaluate", recorded)  # noqa: B010 (from where its command line takes it)
    try:
        harness = HarnessCLI()
        given = harness.parse_args()
        with understood_tasks("--include_path", getattr(given, "include_path", None)):
            harness.execute(given)
    finally:
        setattr(lm_eval, "simple_evaluate", evaluate)  # noqa: B010
    if lost:
        raise lost[0]
    return 0


def _model(options: Mapping[str, Any], device_given: bool) -> TrainedModel:
    """device_given: else options has lm-eval's default, a GPU."""
    given = {"batch_size": options["batch_size"], **dict(options["model_args"] or {})}
    if device_given:
        given["device"] = options["device"]
    if "pretrained" not in given:
        raise UserError("--model_args needs pretrained=PATH: a run folder, a step folder, or an exported file.")
    return TrainedModel.load(**given)


def _check_output(tracker: Any) -> None:
    """Raises NotWritten where --output_path takes no file: lm-eval says so after all the work, and ends with 0."""
    if (given := getattr(tracker, "output_path", None)) is None:
        return
    folder = Path(given).parent if Path(given).suffix == ".json" else Path(given)
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def cache_of(model: TrainedModel, path: str) -> str:
    """--use_cache with the model in its name: lm-eval finds an answer by its question only, whoever gave it."""
    judged = model.judged
    of = [judged.subject().checksum, judged.weights, model.max_length, model.max_gen_toks, judged.settings]
    return f"{path}-{hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:12]}"


def _check_as_they_load(
    manager: TaskManager,
    model: TrainedModel,
    gen_kwargs: Mapping[str, Any] | None,
    samples: Mapping[str, Any] | None = None,
) -> None:
    """lm-eval asks for texts last: a way of generating that is not followed would cost all scores before it.

    samples: of --samples; of a task that it names wrongly, all examples would be asked.
    """
    load = manager.load

    def checked(task_list: Any) -> Any:
        loaded = loaded_tasks(load, task_list)
        for name in samples or {}:
            if name not in loaded["tasks"]:
                known = ", ".join(loaded["tasks"])
                raise UserError(f"--samples names the task {name}, which is not asked; give examples of {known}.")
        check_generation(model, configs_of(loaded), gen_kwargs)
        return loaded

    manager.load = checked


def _lend_tokenizer(model: TrainedModel, metadata: dict[str, Any], folder: Path) -> None:
    """Tasks that make texts of a given length, as RULER does, load a tokenizer of transformers by this name.

    Where the model's own cannot be written as one, a note says so: most tasks need none.
    """
    judged = model.judged
    kept = find_tokenizer(judged.path, judged.meta, metadata.get("tokenizer"))
    assert kept is not None, "the model was loaded with it"
    try:
        write_tokenizer(kept, judged.model.config, folder)
    except UserError as error:
        print(f"note: tasks that make their own texts have no tokenizer: {error}", file=sys.stderr)
        return
    metadata["tokenizer"] = str(folder)


def keep(model: TrainedModel, results: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """A Result of every task, with its soft metrics, beside the model."""
    subject = model.judged.subject()
    for task, (examples, metrics) in figures_of(results).items():
        settings = {name: options[name] for name in SETTINGS if options.get(name) is not None}
        settings |= {"max_length": model.max_length, "task_version": results["versions"].get(task)}
        if model.max_gen_toks != NEW_TOKENS:
            settings["max_gen_toks"] = model.max_gen_toks
        if asked := (options.get("samples") or {}).get(task):
            settings["samples"] = asked
        settings |= model.judged.settings | _metadata(options)
        print(f"kept: {save(Result(task, examples, metrics, subject, settings), model.judged.path)}")


def _metadata(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed for --metadata, such as RULER's lengths; lm-eval adds the model's arguments to it."""
    added = {"tokenizer", *dict(options["model_args"] or {})}
    typed = {name: value for name, value in (options.get("metadata") or {}).items() if name not in added}
    return {"metadata": typed} if typed else {}
