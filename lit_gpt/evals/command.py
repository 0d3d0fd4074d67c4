"""The command line of an evaluation of this project's own: one file of evals/tasks, its Options as flags."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentError

from lit_gpt.config.bounds import violations
from lit_gpt.config.explain import explained
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.results import Result, save
from lit_gpt.evals.tasks import TASKS, Outcome
from lit_gpt.plugins import digests, load_plugins


def judge(task: str, words: list[str]) -> int:
    """Evaluate as the words say, print the figures, and keep them beside the model."""
    module, parser = TASKS.load(task), parser_of(task)
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise UserError(explained(str(error), [key for key, _ in parser.get_defaults().items()])) from error
    options = module.Options(**{name: values[name] for name in module.Options.__dataclass_fields__})
    if wrong := violations(options):
        raise UserError(wrong[0])
    load_plugins(values.plugins)
    judged = Judged(
        Path(values.checkpoint_path).expanduser(),
        config=values.config,
        device=values.device,
        dtype=values.dtype,
        weights=values.weights,
        tokenizer=values.tokenizer_name,
        max_length=values.max_length,
    )
    outcome = module.evaluate(judged, options)
    if not isinstance(outcome, Outcome):
        raise UserError(f"{module.__file__}: evaluate gave a {type(outcome).__name__}. Let it return an Outcome.")
    settings = {name: value for name, value in asdict(options).items() if name != "verbose"} | outcome.settings
    settings |= {"plugins": digests()} if values.plugins else {}
    result = Result(task, outcome.examples, outcome.metrics, judged.subject(), settings)
    for name, metric in outcome.metrics.items():
        error = "" if metric.stderr is None else f" +- {metric.stderr:.4g}"
        print(f"{name:20} {metric.value:.6g}{error}")
    where = save(result, judged.path, values.output_dir)
    print(f"kept: {where}")
    return 0


def parser_of(task: str) -> Parser:
    """Flags of every evaluation, then those of this one. Raises UserError for a file without Options."""
    module = TASKS.load(task)
    if not hasattr(module, "Options"):
        raise UserError(f"{module.__file__} has no Options. Give it a dataclass of that name, whose fields are flags.")
    about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    parser = Parser(prog=f"python -m lit_gpt.tools.evaluate {task}", description=about, exit_on_error=False)
    parser.add_argument("--checkpoint_path", required=True, help="run folder, step folder, or exported file")
    texts = {
        "config": "a name such as sambay_d16, which is compared with the checkpoint; default: nothing is compared",
        "weights": "an average that --ema kept, such as ema_1B; default: the trained weights",
        "tokenizer_name": "bytes, a tokenizer.json or its folder; default: that of the model's data",
        "dtype": "bfloat16, float32, or auto; default: bf16 on a GPU, else fp32",
        "device": "where to run; default: a GPU where there is one",
    }
    for name, text in texts.items():
        parser.add_argument(f"--{name}", type=str | None, default="auto" if name == "dtype" else None, help=text)
    length = "longest input in tokens; default: the training context"
    parser.add_argument("--max_length", type=int | None, default=None, help=length)
    where = "folder for the result; default: evals in the run folder, or beside an exported file"
    parser.add_argument("--output_dir", type=Path | None, default=None, help=where)
    parser.add_argument(
        "--plugins", nargs="+", type=str, default=[], metavar="FILE", help="Python files with mixers that the model has"
    )
    parser.add_class_arguments(module.Options, as_group=False)
    return parser
