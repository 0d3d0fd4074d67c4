"""From argv to a RunConfig: jsonargparse with YAML files, --print_config and old spellings; its errors in one sentence."""

from __future__ import annotations

import functools
import os
import re
import textwrap
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lit_gpt.config.bounds import hints, parts, shown
from lit_gpt.config.resolve import translate_aliases
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.config.words import Tokens, Words
from lit_gpt.errors import UserError, did_you_mean

HELP = "`--help` lists every option."
KINDS = {int: "a whole number", float: "a number", bool: "true or false", Words: "words joined by commas"}
KINDS[Tokens] = "a count of tokens such as 5e9, 10B or 500M,"
KINDS[BaseHyperparameters] = 'JSON such as {"eta0": 0.001}'
JSON, NESTED = '{"option": value}', '{"mixer": {"option": value}}'
GIVEN = (r"Given value: (.*)", r"Got value: (.*)", r"Not of type \w+: (.*)", r"Unable to load config '(.*?)'")
LONGEST = 120  # characters of a message of the parser
# What an option is called elsewhere -> what it is here. A name of base_hps without its group needs no row.
ELSEWHERE = {
    "lr learning_rate max_lr peak_lr": "The peak learning rate is --base_hps.eta0, that of the base depth.",
    "min_lr final_lr": "The final learning rate is --base_hps.min_lr_mult, a fraction of the peak.",
    "batch_size global_batch_size train_batch_size bsz": "The batch is --total_bsz, in tokens; --micro_bsz is the "
    "sequences per device.",
    "micro_batch_size device_batch_size per_device_train_batch_size": "The sequences per device are --micro_bsz.",
    "gradient_accumulation_steps grad_accum accumulation_steps": "Accumulation follows from --total_bsz, --micro_bsz, "
    "--ctx_len and the number of processes.",
    "wd": "The weight decay is --base_hps.weight_decay.",
    "epochs num_epochs num_train_epochs max_epochs": "The length of a run is --max_tokens; the data repeats.",
    "steps max_steps num_steps train_steps num_iterations max_iters": "The length of a run is --max_tokens, which is "
    "steps x --total_bsz.",
    "tokens num_tokens train_tokens": "The token budget is --max_tokens.",
    "warmup warmup_steps warmup_ratio num_warmup_steps warmup_iters": "The warm-up is --base_hps.warmup_tokens.",
    "seq_len seq_length sequence_length context_length max_seq_len block_size": "The context is --ctx_len, in tokens.",
    "window window_size sliding_window": "The window of sliding attention is --swa_len.",
    "n_layer n_layers num_layers num_hidden_layers layers": "The number of layers is --depth.",
    "n_embd d_model hidden_size embed_dim dim width": "The width is --depth x --ar.",
    "data dataset data_dir data_path train_data": "The training data is --train_data_dir.",
    "model model_name arch architecture": "The model family is --train_model.",
    "name run_name exp_name experiment_name": "The name of a run is --train_name.",
    "output output_dir save_dir log_dir": "Run folders go to --out_dir.",
    "clip max_grad_norm clip_grad gradient_clip_val": "The largest gradient norm is --grad_clip.",
    "dtype bf16 fp16 amp mixed_precision": "The numbers are --precision bf16 or fp32.",
    "scheduler lr_scheduler lr_schedule lr_scheduler_type": "The learning-rate schedule is --schedule.",
    "save_every save_interval save_steps": "The steps between checkpoints are --save_step.",
    "eval_every eval_interval eval_steps": "The steps between validations are --eval_step.",
    "log_every log_interval logging_steps": "The steps between log lines are --log_step.",
    "checkpoint ckpt load pretrained": "Weights are --init_from, a run is continued with --resume.",
    "wandb use_wandb report_to": "Trackers are --loggers, such as --loggers wandb.",
}


@functools.cache
def build_parser() -> ArgumentParser:
    """The parser of pretrain.py; every option is a field of RunConfig. Built once: it takes a tenth of a second."""
    parser = ArgumentParser(
        prog="pretrain.py",
        description="Train a language model: a family, a depth, a scaling rule, a folder of tokens.",
        epilog="Start with: python pretrain.py --train_model transformer --depth 8 --train_name mup --dry_run",
        exit_on_error=False,
        allow_abbrev=False,  # a typo must not become the option that it happens to begin
    )
    add_run_options(parser)
    return parser


def add_run_options(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """Add the fields of RunConfig as options, and --config for a file of them."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(RunConfig, as_group=False, skip=set(skip))


def parse(argv: list[str]) -> RunConfig:
    """A RunConfig from command-line words. Raises UserError for words that are no options, and wrong values."""
    return run_config(parse_words(build_parser(), argv))


def parse_words(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """What a parser with add_run_options (made with exit_on_error=False) reads. Raises UserError likewise."""
    try:
        return parser.instantiate(parser.parse_args(list(_with_files(translate_aliases(argv)))))
    except ArgumentError as error:
        raise UserError(_explained(str(error), parser)) from error


def run_config(values: Namespace) -> RunConfig:
    """The RunConfig among parsed values; options that are not its fields are left out."""
    fields = RunConfig.__dataclass_fields__
    return RunConfig(**{key: value for key, value in values.items() if key in fields})


def _with_files(words: list[str]) -> Iterator[str]:
    """The words, less files of options that hold none. Raises UserError for files that hold something else."""
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        if option == "--config":
            value = value if equals else next(following, "")
            if not value or value.startswith("--"):
                raise UserError("--config needs a value: a YAML file of options.")
            word = f"--config={os.path.expanduser(value)}"
            if _is_empty(os.path.expanduser(value)):
                continue
        yield word


def _is_empty(path: str) -> bool:
    """Whether a YAML file holds nothing but comments; what is no file is left to the parser."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {_one_line(str(error))}.") from error
    if options is not None and not isinstance(options, dict):
        raise UserError(f"--config {path} holds no options: it must be lines such as 'depth: 8'.")
    return options is None


def _explained(message: str, parser: ArgumentParser) -> str:
    """A message of the parser as one sentence that names the option and what it takes."""
    if found := re.search(r'Parser key "([\w.]+)":', message):
        key, hint = found[1], _hint(found[1])
        given = next(filter(None, (re.search(text, message, re.DOTALL) for text in GIVEN)), None)
        if hint and given:
            value = shown(given[1].strip()) if "NestedArg" not in given[1] else "made of parts"
            return f"--{key} cannot be {value}; give {_described(hint)}."
    if found := re.search(r"argument --([\w.]+): expected one argument", message):
        return f"--{found[1]} needs a value: {_described(_hint(found[1]))}."
    if found := re.search(r"(?:Group '(\w+)' does not accept o|O)ption '([\w.-]+)'", message):
        name = ".".join(filter(None, found.groups()))
        return f"{name!r} is no option{_meant(name, parser)}"
    if found := re.match(r"unrecognized arguments: (-*)(\S*)", message):
        meant = _meant(found[2].partition("=")[0], parser) if found[1] else f". An option begins with --; {HELP}"
        return textwrap.shorten(message, LONGEST, placeholder=" ...") + meant
    return f"{_one_line(message)}. {HELP}"


def _meant(name: str, parser: ArgumentParser) -> str:
    """The end of a sentence about a name that is no option: which one may have been meant."""
    name = name.replace("-", "_")
    known = [key for key, _ in parser.get_defaults().items()]
    for names, sentence in ELSEWHERE.items():
        if name.lower() in names.split():
            return f". {sentence}"
    if name in BaseHyperparameters.__dataclass_fields__:
        return f". Did you mean '--base_hps.{name}'?"
    return "." + (did_you_mean(f"--{name}", [f"--{key}" for key in known]) or f" {HELP}")


def _hint(key: str) -> Any:
    """The type of an option with its notes; None for what is not a field of RunConfig."""
    group, _, name = key.rpartition(".")
    return hints(BaseHyperparameters if group == "base_hps" else RunConfig).get(name if group == "base_hps" else key)


def _described(hint: Any) -> str:
    """What an option of this type takes, in words."""
    return " or ".join(_part(part) for part in parts(hint) if part is not type(None))


def _part(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, limit = get_args(hint)
        return limit.words if kind in (str, Words) else f"{_part(kind)} {limit.words}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is dict:
        return f"JSON such as {JSON if get_args(hint)[1] is Any else NESTED}"
    return KINDS.get(hint, "a value")


def _one_line(text: str) -> str:
    return " ".join(text.split())
