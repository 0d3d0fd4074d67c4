"""The command line of an evaluation: flags that all have, and its own."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from lit_gpt.config.bounds import violations
from lit_gpt.config.command import parsed
from lit_gpt.config.groups.kinds import Length
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.evals.tasks import TASKS
from lit_gpt.tools._cli import check_given, local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins, add_trained_with, add_weights


def read(task: str, words: list[str]) -> tuple[Namespace, Any]:
    """The parsed words, and the evaluation's own Options among them. Raises UserError for wrong ones."""
    module = TASKS.load(task)
    values = parsed(parser_of(task), words, module.Options)
    check_given(values)
    options = module.Options(**{name: values[name] for name in module.Options.__dataclass_fields__})
    if wrong := violations(options):
        raise UserError(wrong[0])
    return values, options


def parser_of(task: str) -> Parser:
    """Flags of every evaluation, then those of this one. Raises UserError for a file without Options."""
    module = TASKS.load(task)
    if not hasattr(module, "Options"):
        raise UserError(f"{module.__file__} has no Options. Give it a dataclass of that name, whose fields are flags.")
    about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    parser = parser_for(f"evaluate {task}", about, exit_on_error=False)
    where = "run folder, step folder, exported file, or .pth checkpoint of ArchScale"
    parser.add_argument("--checkpoint_path", type=local_path, required=True, help=where)
    texts = {
        "config": "a name such as sambay_d16, compared with what the checkpoint says; default: nothing is compared",
        "tokenizer_name": "bytes, a tokenizer.json or its folder; default: that of the model's data",
        "dtype": "bfloat16, float32, or auto; default: bf16 on a GPU, else fp32",
        "device": "where to run; default: a GPU where there is one",
    }
    for name, text in texts.items():
        parser.add_argument(f"--{name}", type=str | None, default="auto" if name == "dtype" else None, help=text)
    length = "longest input in tokens; default: the training context, times --yarn_scale"
    parser.add_argument("--max_length", type=Length | None, default=None, help=length)
    yarn = "stretch rotary positions to a context this many times as long (YaRN); default: as trained"
    parser.add_argument("--yarn_scale", type=float | None, default=None, help=yarn)
    window = "tokens that windowed layers see; default: as trained"
    parser.add_argument("--window", type=Length | None, default=None, help=window)
    kept = "folder for the result; default: evals in the run folder, or beside an exported file"
    parser.add_argument("--output_dir", type=local_path, default=None, help=kept)
    answers = "file for the figures of every question, one JSON object on a line; default: none"
    parser.add_argument("--answers", type=local_path, default=None, help=answers)
    data = "folder of the model's training data, in which the evaluation's n-grams are looked for; default: none"
    parser.add_argument("--decontaminate", type=str | None, default=None, help=data)
    add_trained_with(parser, config=False)
    add_weights(parser)
    add_plugins(parser)
    parser.add_class_arguments(module.Options, as_group=False)
    return parser
