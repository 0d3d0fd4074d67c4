"""From argv to a RunConfig: jsonargparse with YAML files, --print_config and old spellings."""

from __future__ import annotations

import functools

from jsonargparse import ArgumentError, ArgumentParser

from lit_gpt.config.resolve import translate_aliases
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError, did_you_mean


@functools.cache
def build_parser() -> ArgumentParser:
    """The parser of pretrain.py; every option is a field of RunConfig. Built once: it takes a tenth of a second."""
    parser = ArgumentParser(
        prog="pretrain.py",
        description="Train a language model: a family, a depth, a scaling rule, a folder of tokens.",
        epilog="Start with: python pretrain.py --train_model transformer --depth 8 --train_name mup --dry_run true",
        exit_on_error=False,
        allow_abbrev=False,  # a typo must not become the option that it happens to begin
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def parse(argv: list[str]) -> RunConfig:
    """A RunConfig from command-line words. Raises UserError for words that are no options, and wrong values."""
    parser = build_parser()
    try:
        values = parser.instantiate(parser.parse_args(translate_aliases(argv)))
    except ArgumentError as error:
        raise UserError(f"{error}{_suggestion(str(error), parser)}") from error
    values.pop("config", None)
    return RunConfig(**dict(values.items()))


def _suggestion(message: str, parser: ArgumentParser) -> str:
    """Which options may have been meant by those that the message calls unrecognized."""
    known = [f"--{key}" for key, _ in parser.get_defaults().items()]
    given = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
    close = (did_you_mean(word, known) for word in given if word not in known)
    return next((f".{hint}" for hint in close if hint), "\n`python pretrain.py --help` lists every option.")
