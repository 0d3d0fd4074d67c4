"""Judge a trained model with an evaluation of this project's own, one file of lit_gpt/evals/tasks.

python -m lit_gpt.tools.evaluate phonebook --checkpoint_path out/my_run
python -m lit_gpt.tools.evaluate phonebook --help
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lit_gpt.config.bounds import violations
from lit_gpt.config.command import parsed, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.evals.extension import Extension
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.results import Result, save
from lit_gpt.evals.tasks import TASKS, Outcome
from lit_gpt.plugins import digests
from lit_gpt.tools._cli import add_plugins, add_weights, local_path, parser_for, use_plugins


def judge(task: str, words: list[str]) -> int:
    """Evaluate as the words say, print the figures, and keep them beside the model."""
    module, parser = TASKS.load(task), parser_of(task)
    values = parsed(parser, words, module.Options)
    options = module.Options(**{name: values[name] for name in module.Options.__dataclass_fields__})
    if wrong := violations(options):
        raise UserError(wrong[0])
    use_plugins(values.plugins)
    judged = Judged(
        values.checkpoint_path,
        config=values.config,
        device=values.device,
        dtype=values.dtype,
        weights=values.weights,
        tokenizer=values.tokenizer_name,
        max_length=values.max_length,
        extension=Extension(values.yarn_scale, values.window),
    )
    outcome = module.evaluate(judged, options)
    if not isinstance(outcome, Outcome):
        raise UserError(f"{module.__file__}: evaluate gave a {type(outcome).__name__}. Let it return an Outcome.")
    settings = {name: value for name, value in asdict(options).items() if name != "verbose"} | outcome.settings
    settings |= judged.extension.settings | ({"plugins": digests()} if values.plugins else {})
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
    parser = parser_for(f"evaluate {task}", about, exit_on_error=False)
    where = "run folder, step folder, or exported file"
    parser.add_argument("--checkpoint_path", type=local_path, required=True, help=where)
    texts = {
        "config": "a name such as sambay_d16, which is compared with the checkpoint; default: nothing is compared",
        "tokenizer_name": "bytes, a tokenizer.json or its folder; default: that of the model's data",
        "dtype": "bfloat16, float32, or auto; default: bf16 on a GPU, else fp32",
        "device": "where to run; default: a GPU where there is one",
    }
    for name, text in texts.items():
        parser.add_argument(f"--{name}", type=str | None, default="auto" if name == "dtype" else None, help=text)
    length = "longest input in tokens; default: the training context, times --yarn_scale"
    parser.add_argument("--max_length", type=int | None, default=None, help=length)
    yarn = "stretch rotary positions to a context this many times as long (YaRN); default: as trained"
    parser.add_argument("--yarn_scale", type=float | None, default=None, help=yarn)
    window = "tokens that windowed layers see; default: as trained"
    parser.add_argument("--window", type=int | None, default=None, help=window)
    kept = "folder for the result; default: evals in the run folder, or beside an exported file"
    parser.add_argument("--output_dir", type=Path | None, default=None, help=kept)
    add_weights(parser)
    add_plugins(parser)
    parser.add_class_arguments(module.Options, as_group=False)
    return parser


def main(words: list[str]) -> int:
    """The first word names the evaluation; the others are its options."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(__doc__, f"\nThe evaluations are {', '.join(TASKS.names())}.", sep="")
        return 0
    if words[0].startswith("-"):
        raise UserError(f"Type the name of an evaluation first: {', '.join(TASKS.names())}.")
    return judge(words[0], words[1:])


if __name__ == "__main__":
    run_command(main)
