"""From argv to a RunConfig: jsonargparse with YAML files, --print_config and old spellings."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from lit_gpt.config.resolve import translate_aliases
from lit_gpt.config.run import RunConfig


def build_parser() -> ArgumentParser:
    """The parser of pretrain.py; every option is a field of RunConfig."""
    parser = ArgumentParser(
        prog="pretrain.py",
        description="Train a language model: a family, a depth, a scaling rule, a folder of tokens.",
        epilog="Start with: python pretrain.py --train_model transformer --depth 8 --train_name mup --dry_run true",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def parse(argv: list[str]) -> RunConfig:
    """A RunConfig from command-line words; the parser itself exits with code 2 on bad ones."""
    parser = build_parser()
    values = parser.instantiate(parser.parse_args(translate_aliases(argv)))
    values.pop("config", None)
    return RunConfig(**dict(values.items()))
