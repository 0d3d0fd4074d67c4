"""Judge a trained model with an evaluation of this project's own, one file of lit_gpt/evals/tasks.

python -m lit_gpt.tools.evaluate phonebook --checkpoint_path out/my_run
python -m lit_gpt.tools.evaluate phonebook --help
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.data.stream import TokenStream
from lit_gpt.errors import UserError
from lit_gpt.evals.overlap import NGRAM, other_tokenizer, overlap, streams_of
from lit_gpt.evals.results import Metric, Result, save
from lit_gpt.evals.tasks import TASKS, Outcome
from lit_gpt.tools._evaluate_cli import read
from lit_gpt.utils.files import told, write_text

UNSAID = ("verbose", "tasks_dir")  # options that change nothing in the figures


def split(words: list[str]) -> tuple[str, list[str]]:
    """The name of an evaluation and its words, which may be none. Raises UserError for words that do not begin so."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(__doc__, f"\nThe evaluations are {', '.join(TASKS.names())}.", sep="")
        sys.exit(0)
    if words[0].startswith("-"):
        raise UserError(f"Type the name of an evaluation first: {', '.join(TASKS.names())}.")
    return words[0], words[1:]


answer_early(__name__, lambda words: read(*split(words)))

from lit_gpt.evals.archscale_file import read_typed
from lit_gpt.evals.crew import join
from lit_gpt.evals.extension import Extension
from lit_gpt.evals.judged import Judged
from lit_gpt.plugins import digests
from lit_gpt.tools._model_values import use_plugins


def judge(task: str, words: list[str]) -> int:
    """Evaluate as the words say, print the figures, and keep them beside the model.

    Processes of torchrun or accelerate share the questions; the first one prints and keeps. Raises UserError for words
    that do not fit the task or the model, and NotWritten where the results cannot be kept.
    """
    module = TASKS.load(task)
    values, options = read(task, words)
    use_plugins(values.plugins)
    _check_outputs(values.output_dir, values.answers)
    judged = Judged.load(
        values.checkpoint_path,
        config=values.config,
        device=values.device,
        dtype=values.dtype,
        weights=values.weights,
        tokenizer=values.tokenizer_name,
        max_length=values.max_length,
        extension=Extension(values.yarn_scale, values.window),
        trained_with=read_typed(values.trained_with),
    )
    seen = TrainingData.of(values.decontaminate, judged) if values.decontaminate else None
    judged.crew = join()
    with judged.crew:
        outcome = module.evaluate(judged, options)
    if judged.crew.rank:
        return 0
    if not isinstance(outcome, Outcome):
        raise UserError(f"{module.__file__}: evaluate gave a {type(outcome).__name__}. Let it return an Outcome.")
    settings = {name: value for name, value in asdict(options).items() if name not in UNSAID} | outcome.settings
    settings |= judged.settings | ({"plugins": digests()} if values.plugins else {})
    settings |= {"decontaminate": seen.where} if seen else {}
    metrics = outcome.metrics | (seen.metrics(outcome) if seen else {})
    result = Result(task, outcome.examples, metrics, judged.subject(), settings)
    for name, metric in metrics.items():
        error = "" if metric.stderr is None else f" +- {metric.stderr:.4g}"
        print(f"{name:20} {metric.value:.6g}{error}")
    where = save(result, judged.path, values.output_dir)
    print(f"kept: {where}")
    if values.answers:
        _keep_answers(outcome, values.answers)
    return 0


def _check_outputs(folder: Path | None, answers: Path | None) -> None:
    """Raises UserError, before hours of work, for places that nothing can be written to."""
    if folder and folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file. Give a folder.")
    if answers and (answers.is_dir() or not answers.parent.is_dir()):
        raise UserError(f"--answers {answers} must be a file in a folder that is there. Make the folder first.")


def _keep_answers(outcome: Outcome, path: Path) -> None:
    """One JSON object on a line for each question, in order. Raises UserError for an evaluation that gives none."""
    if not outcome.answers:
        raise UserError("This evaluation says nothing about single questions. Leave --answers out.")
    with told(path):
        write_text(path, "".join(json.dumps(answer) + "\n" for answer in outcome.answers))


class TrainingData(NamedTuple):
    """Data in which an evaluation may be contained."""

    where: str
    streams: list[TokenStream]

    @classmethod
    def of(cls, where: str, judged: Judged) -> TrainingData:
        """Raises UserError for a folder without data, and for tokens that are not the model's."""
        streams = streams_of(where)
        if other := other_tokenizer(where, judged.tokenizer):
            raise UserError(
                f"{where} has tokens of {other!r}, and the evaluation those of {judged.tokenizer.name!r}, so no "
                "n-gram can be compared. Give --decontaminate the data that the model was trained on."
            )
        return cls(where, streams)

    def metrics(self, outcome: Outcome) -> dict[str, Metric]:
        """contaminated: share of questions with an n-gram of the data; overlap: share of their n-grams in it.

        Raises UserError where the evaluation has no question of n tokens.
        """
        found = overlap(outcome.sequences, self.streams, NGRAM, show=True).compared
        if not found:
            raise UserError(
                f"The evaluation gives no sequence of {NGRAM} tokens or more, for which --decontaminate could look. "
                "Leave it out."
            )
        contaminated = replace(Metric.share(sum(share > 0 for share in found), len(found)), better="lower")
        return {"contaminated": contaminated, "overlap": Metric.mean(found, "lower")}


def main(words: list[str]) -> int:
    """The first word names the evaluation; the others are its options."""
    return judge(*split(words))


if __name__ == "__main__":
    run_command(main)
