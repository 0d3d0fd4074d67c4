"""The command line of an evaluation of this project's own: one file of evals/tasks, its Options as flags."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from lit_gpt.config.bounds import violations
from lit_gpt.config.explain import explained
from lit_gpt.errors import UserError
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.results import Result, save
from lit_gpt.evals.tasks import TASKS


def judge(task: str, words: list[str]) -> int:
    """Evaluate as the words say, print the figures, and keep them beside the model."""
    module = TASKS.load(task)
    parser = parser_of(task)
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise UserError(explained(str(error), [key for key, _ in parser.get_defaults().items()])) from error
    options = module.Options(**{name: values[name] for name in module.Options.__dataclass_fields__})
    if wrong := violations(options):
        raise UserError(wrong[0])
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
    settings = {name: value for name, value in asdict(options).items() if name != "verbose"} | outcome.settings
    result = Result(task, outcome.examples, outcome.metrics, judged.subject(), settings)
    for name, metric in outcome.metrics.items():
        error = "" if metric.stderr is None else f" +- {metric.stderr:.4g}"
        print(f"{name:20} {metric.value:.6g}{error}")
    where = save(result, judged.path, values.output_dir)
    print(f"kept: {where}")
    return 0


def parser_of(task: str) -> ArgumentParser:
    """Flags of every evaluation, then those of this one."""
    module = TASKS.load(task)
    parser = ArgumentParser(
        prog=f"eval_{task}.py", description=(module.__doc__ or "").split("\n\n")[0], exit_on_error=False
    )
    parser.add_argument("--checkpoint_path", required=True, help="run folder, step folder, or exported file")
    parser.add_argument("--config", type=str | None, default=None, help="family_dDEPTH, compared with the checkpoint")
    parser.add_argument("--weights", type=str | None, default=None, help="an average that --ema kept, such as ema_1B")
    parser.add_argument("--tokenizer_name", type=str | None, default=None, help="default: the one of the model's data")
    parser.add_argument(
        "--max_length", type=int | None, default=None, help="longest input; default: the training context"
    )
    parser.add_argument(
        "--dtype", type=str, default="auto", help="bfloat16, float32, or auto: bf16 on a GPU, else fp32"
    )
    parser.add_argument("--device", type=str | None, default=None, help="default: a GPU where there is one")
    parser.add_argument("--output_dir", type=Path | None, default=None, help="default: beside the model")
    parser.add_class_arguments(module.Options, as_group=False)
    return parser
