"""From argv to a RunConfig: jsonargparse with YAML files, --print_config and old spellings."""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import is_dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, Namespace

from lit_gpt.config.bounds import hints
from lit_gpt.config.explain import explained, one_line
from lit_gpt.config.parsers import Parser
from lit_gpt.config.resolve import translate_aliases
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.utils.files import near, regular

# The shortest lines that teach something, for the top of `--help`.
EXAMPLES = (
    ("python pretrain.py --depth 8 --train_name mup --dry_run", "show the Plan of a run: parameters, rates, memory"),
    ("python pretrain.py --train_data_dir data/mine --depth 8 --train_name mup", "train it"),
    (
        "torchrun --nproc_per_node 8 pretrain.py --depth 8 --resume auto",
        "train on 8 GPUs, and go on from the newest checkpoint if there is one",
    ),
    ("python pretrain.py --help model", "explain one group of options; --help depth explains one option"),
)


@functools.cache
def build_parser() -> Parser:
    """The parser of pretrain.py; every option is a field of RunConfig. Built once: it takes a tenth of a second."""
    parser = Parser(
        prog="python pretrain.py",
        description=RunConfig.__doc__,
        exit_on_error=False,
        allow_abbrev=False,  # a typo must not become the option that it happens to begin
    )
    parser.examples = EXAMPLES
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser, skip: Collection[str] = ()) -> None:
    """Add the fields of RunConfig as options, and --config for a file of them."""
    about = "YAML file of options, as --print_config prints it; options that follow overrule it."
    parser.add_argument("--config", action="config", metavar="FILE", help=about)
    printing = parser._actions[-1]  # --print_config, which came with it
    printing.metavar, printing.help = "", "Print all options as such a file, and end."
    before = {action.dest for action in parser._actions}
    parser.add_class_arguments(RunConfig, as_group=False, skip=set(skip))
    parser.run_options = {action.dest: action.default for action in parser._actions if action.dest not in before}


def parse(argv: list[str]) -> RunConfig:
    """A RunConfig from command-line words. Raises UserError for words that are no options, and wrong values."""
    return run_config(parse_words(build_parser(), argv))


def parse_words(parser: Parser, argv: list[str]) -> Namespace:
    """What a parser with add_run_options (made with exit_on_error=False) reads. Raises UserError likewise.

    `--help TOPIC` among the words prints it and ends the process.
    """
    parser.answer(argv)
    words = list(_with_files(translate_aliases(argv)))
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise UserError(explained(str(error), [key for key, _ in parser.get_defaults().items()])) from error
    _say_overruled(words)
    return values


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
            if _options_in(os.path.expanduser(value)) is None:
                continue
        yield word


def _say_overruled(words: list[str]) -> None:
    """Say which typed options count no more, since a file that follows gives them too."""
    typed = dict[str, str]()  # option -> the file that overrules it, or ""
    for word in words:
        option, _, path = word.partition("=")
        if option == "--config" and typed:
            given = _options_in(path) or ()
            typed |= {name: path for name in typed if name[2:] in given}
        elif option.startswith("--"):
            typed[option] = ""
    for path in dict.fromkeys(filter(None, typed.values())):
        names = ", ".join(name for name, by in typed.items() if by == path)
        _say_once(f"note: --config {path} overrules {names}, typed before it: type after the file what shall count")


@functools.cache
def _say_once(note: str) -> None:
    """Print a note, once where words are read again, and by one process of a host."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(note, file=sys.stderr)


def _options_in(path: str) -> set[str] | None:
    """The options that a YAML file gives, such as base_hps.eta0; None where it holds nothing but comments.

    What is no file, such as YAML itself, is left to the parser.
    """
    if path.endswith((".yaml", ".yml")) and not os.path.exists(path):
        raise UserError(f"--config: File does not exist: {path}.{near(Path(path))} The folder configs has examples.")
    if not os.path.exists(path) or os.path.isdir(path):
        return set()
    try:
        with open(regular(Path(path)), encoding="utf-8") as file:
            options = yaml.compose(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {one_line(str(error))}.") from error
    if options is None or options.tag == "tag:yaml.org,2002:null":
        return None
    if not isinstance(options, yaml.MappingNode):
        raise UserError(f"--config {path} holds no options: it must be lines such as 'depth: 8'.")
    if problem := _problem(options, ()):
        raise UserError(f"--config {path} {problem}.")
    for key, value in options.value:
        if is_dataclass(hints(RunConfig).get(key.value)) and not isinstance(value, yaml.MappingNode):
            raise UserError(f"--config {path} must give {key.value} lines of its own, such as 'eta0: 0.001'.")
    groups = [(key.value, value) for key, value in options.value if isinstance(value, yaml.MappingNode)]
    return {key.value for key, _ in options.value} | {f"{name}.{k.value}" for name, v in groups for k, _ in v.value}


def _problem(node: yaml.Node, above: tuple[yaml.Node, ...]) -> str:
    """What is wrong with a part of a YAML file whatever the options are, else "". above: what it is inside of."""
    if node in above:
        return "holds a part that contains itself"
    if not isinstance(node, yaml.CollectionNode):
        return ""
    inner = node.value
    if isinstance(node, yaml.MappingNode):
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in inner):
            return "has a key that is no word"
        keys = Counter(key.value for key, _ in inner)
        if twice := [key for key, times in keys.items() if times > 1]:
            return f"gives {', '.join(twice)} twice. Keep one line of each"
        inner = [value for _, value in inner]
    return next(filter(None, (_problem(part, (*above, node)) for part in inner)), "")
