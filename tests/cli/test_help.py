"""The help teaches: options in groups, what they are in words, and nothing that is not so.

It was 567 lines: a block of usage, and 130 options below each other with types such as Optional[Literal[...]].
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from script_module import script_module

import pretrain
from lit_gpt.architectures import FAMILIES, build
from lit_gpt.config import resolve
from lit_gpt.config.cli import build_parser, parse
from lit_gpt.config.help import NARROWEST, WIDEST, Option, groups
from lit_gpt.config.names import TOKENS
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.registry import Registry
from lit_gpt.scaling.rules import RULES
from lit_gpt.tools import _cli, compare, convert, coord_check, fit, generate, inspect, plan, results, runs
from lit_gpt.tools.__main__ import listing

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).with_name("options.txt").read_text(encoding="utf-8").split()
OPTIONS: dict[str, Option] = {option.name[2:]: option for group in groups() for option in group.options}


def asked(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What `pretrain.py WORDS` prints on its way to exit code 0."""
    assert pretrain.main(list(words)) == 0
    return capsys.readouterr().out


def default_of(name: str) -> object:
    owner, _, last = name.rpartition(".")
    return getattr(BaseHyperparameters() if owner else RunConfig(), last)


def test_every_option_is_in_one_group_and_has_a_meaning() -> None:
    """So a new option is not forgotten: it fails here until the docstring of its group says what it means."""
    listed = [option.name[2:] for group in groups() for option in group.options]
    assert sorted(listed) == FROZEN
    for group in groups():
        assert group.title and group.about and 3 <= len(group.options) <= 16, group.title
    for kind in RunConfig.__mro__[1:-1]:
        described = set(re.findall(r"^ {4}(\w+): ", kind.__doc__ or "", re.MULTILINE))
        assert described == set(vars(kind)["__annotations__"]) - {"base_hps"}, kind


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_described_in_words(name: str) -> None:
    option, value = OPTIONS[name], default_of(name)
    assert re.match(r"[A-Z]|\w+(, \w+)+|bf16", option.meaning) and option.meaning.endswith("."), option.meaning
    text = " ".join(" ".join([*option.in_full(), *option.in_short()]).split())
    assert text.isascii() and not re.search(r"None|Optional|Literal|Annotated|default: null", text)
    if value is None or value == []:
        assert option.default, "where nothing stands for a value, the group says in words what holds"
    elif isinstance(value, (bool, str)):
        assert option.default.partition(";")[0] == (value if isinstance(value, str) else str(value).lower())
    else:
        assert float(option.default) == pytest.approx(value, rel=1e-5)


def test_defaults_in_words_are_those_that_hold() -> None:
    for name, value in resolve.DEFAULTS.items():
        assert OPTIONS[name].default.startswith(str(value)), name
    resolved = resolve.resolve(RunConfig(train_name="x"))[0]
    for name, option in OPTIONS.items():
        first = re.split(r"[;,.] ?", option.default)[0]
        if default_of(name) is None and first in ("true", "false") and name not in ("use_flce", "compile"):
            assert bool(getattr(resolved, name)) == (first == "true"), name


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_are_named_where_they_act(token: str) -> None:
    for name in TOKENS[token]:
        assert any(shown.split()[0] == token for shown in OPTIONS[name].tokens)
    assert "true with the default --train_name" in OPTIONS["varlen"].default


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.example])
def test_examples_can_be_typed(name: str) -> None:
    """Each is a command line that parses, and names its option."""
    example = OPTIONS[name].example
    words = re.match(r"(--[\w.]+ ('[^']*'|\S+) ?)+", example.replace(",", ", ").replace(" or --", "\n--"))
    assert words, example
    line = re.sub(r",? (makes|sets|has|a file|or with|or) .*", "", example).rstrip(",")
    typed = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
    assert any(word.partition(".")[0] == f"--{name.partition('.')[0]}" for word in typed), typed
    parse(typed)


@pytest.mark.parametrize("columns", [40, 80, 100, 400])
def test_the_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    width = min(max(columns, NARROWEST), WIDEST)
    pages = [build_parser().format_help(), plan.build_parser().format_help(), generate.build_parser().format_help()]
    for tool in (convert, results, runs):
        with pytest.raises(SystemExit):
            tool.main(["--help"])
        pages.append(capsys.readouterr().out)
    pages += [group.in_full() for group in groups()]
    long = {line for page in pages for line in page.splitlines() if len(line) > width}
    assert not {line for line in long if " " in line.strip()}
    assert len(build_parser().format_help().splitlines()) < 180, "an overview"
    assert columns < 80 or all(len(group.in_full().splitlines()) < 60 for group in groups()), "a screen or so"


def test_the_overview_names_every_option(capsys: pytest.CaptureFixture) -> None:
    shown = asked(capsys, "--help")
    assert set(re.findall(r"--([\w.]+)", shown)) >= {*FROZEN, "config", "print_config"}
    assert "usage: python pretrain.py [options]\n" in shown and shown.count("usage") == 1
    for group in groups():
        assert f"\n{group.title} (--help {group.key}): " in shown
    assert asked(capsys, "-h") == asked(capsys, "--depth", "3", "--help") == shown


def test_the_help_of_a_topic(capsys: pytest.CaptureFixture) -> None:
    for group in groups():
        shown = asked(capsys, "--help", group.key)
        assert shown.startswith(f"{group.title}: ") and shown == f"{group.in_full()}\n"
    assert asked(capsys, "--help", "depth") == asked(capsys, "--help", "--depth") == asked(capsys, "--help=depth")
    assert asked(capsys, "--help", "depth").startswith("  --depth INTEGER\n      Number of layers.")
    assert "--base_hps.eta0 NUMBER" in asked(capsys, "--help", "eta0")
    values = "--act_ckpt one of: true, false, off, cheap, selective, full"
    assert values in asked(capsys, "--help", "--gradient_checkpointing")
    assert asked(capsys, "--help", "memory") == asked(capsys, "--help", "precision")
    assert "one of: bf16" in asked(capsys, "--help", "--precision").splitlines()[0], "with dashes it is the option"
    assert "\nExperts: " in asked(capsys, "--help", "all")


@pytest.mark.parametrize(
    ("topic", "says"), [("lr", "--base_hps.eta0"), ("dpeth", "Did you mean '--depth'"), ("zzz", "")]
)
def test_an_unknown_topic_is_one_sentence(topic: str, says: str, capsys: pytest.CaptureFixture) -> None:
    assert pretrain.main(["--help", topic]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {topic!r} is no option and no group of options") and shown.count("\n") == 1
    assert says in shown and all(group.key in shown for group in groups())


def test_what_is_not_there_is_not_described_as_if_it_were() -> None:
    for name in resolve.NOT_YET:
        assert OPTIONS[name].meaning.startswith("Refused when true:")
        with pytest.raises(UserError, match="not in this version"):
            resolve.resolve(RunConfig(train_name="x", **{name: True}))  # type: ignore[arg-type]
    archscale = groups()[-1]
    assert archscale.key == "archscale" and not any(option.usual for option in archscale.options)
    code = "".join(p.read_text() for p in (ROOT / "lit_gpt").rglob("*.py") if "config" not in p.parts)
    idle = {
        option.name[2:].rpartition(".")[2] for option in archscale.options if option.meaning.startswith("Does nothing")
    }
    assert idle == {"fsdp2", "logging_multiprocessing", "n0_mult"}
    assert not {name for name in idle if re.search(rf"\.{name}\b", code)}


def test_tools_show_their_own_options_and_those_of_runs(capsys: pytest.CaptureFixture) -> None:
    shown = plan.build_parser().format_help()
    assert "  --layers true or false" in shown and "--train_model NAME" in shown and "--dry_run" not in shown
    with pytest.raises(SystemExit):
        coord_check.parse(["--help", "batch"])
    shown = capsys.readouterr().out
    assert "--micro_bsz INTEGER" in shown and "--max_tokens" not in shown
    assert "Default: 16." in shown and not _cli.parser_for("x", "y").of_runs()


def test_types_and_defaults_of_other_commands(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their help had types such as <function local_path at 0x7f8126c54860>, and those of argparse no defaults."""
    shown = " ".join(generate.build_parser().format_help().split())
    assert "--max_new_tokens INTEGER" in shown and "(default: 200)" in shown and "local_path" not in shown
    for script, words in {
        "plots/plot_run.py": ["usage: plot_run.py RUN ... [options]", "--output PATH", "(default: run.png)"],
        "scripts/prepare_text.py": ["--source TEXT", "(required)", "--bos true or false", "(default: bytes)"],
    }.items():
        with pytest.raises(SystemExit), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, "--help"])
            runpy.run_path(str(ROOT / script), run_name="__main__")
        shown = capsys.readouterr().out
        assert not [word for word in words if word not in shown]
        assert not re.search(r"<\w+ |None|null|Optional|Union", shown), shown


def test_the_tools_are_listed() -> None:
    """`python -m lit_gpt.tools` was "No module named lit_gpt.tools.__main__"."""
    lines = listing().splitlines()
    assert all(re.fullmatch(r"python -m lit_gpt\.tools\.[a-z]\w+ +[A-Z].*[.?]", line) for line in lines), lines
    assert len(lines) == len(list((ROOT / "lit_gpt/tools").glob("[a-z]*.py"))) > 10


@pytest.mark.parametrize(
    ("build", "line", "says"),
    [
        (generate.build_parser, "x --max_new_tokens many", "--max_new_tokens cannot be 'many'; give a whole number."),
        (generate.build_parser, "x --temprature 3", "unrecognized arguments: --temprature 3. Did you mean '--temp"),
        (generate.build_parser, "", "these arguments are needed: path."),
        (inspect.build_parser, "", "a command is needed, one of env, run, checkpoint."),
        (inspect.build_parser, "runn x", "there is no 'runn'; give one of env, run, checkpoint. Did you mean 'run'?"),
        (inspect.build_parser, "run", "these arguments are needed: path."),
        (compare._parser, "--seeds x", "--seeds cannot be 'x'; give a whole number."),
    ],
)
def test_a_mistyped_line_of_any_tool_is_one_sentence(build, line, says, capsys) -> None:
    """Only pretrain.py spoke so; tools said "Expected a <class 'int'>" below a line of usage and a tip."""
    with pytest.raises(SystemExit) as ended:
        build().parse_args(line.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"error: {says}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "registry"), [("train_model", FAMILIES), ("optimizer", OPTIMIZERS), ("parameterization", RULES)]
)
def test_values_that_are_files_are_not_listed_by_hand(name: str, registry: Registry) -> None:
    """A new file would be missing from the list; the error for an unknown name reads the folder."""
    said = set(re.findall(r"\w+", OPTIONS[name].meaning))
    assert set(registry.names()) - said, "only some, as examples"
    assert ", ".join(registry.names()) in str(registry.unknown("no_such_file"))


def test_a_dry_run_says_what_the_default_name_sets(capsys: pytest.CaptureFixture) -> None:
    def line(*words: str) -> str:
        assert pretrain.main(["--depth", "8", "--dry_run", *words]) == 0
        return "".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("name "))

    sets = "--parameterization mupp, --tie_embeddings true, --rope_base 640000, --varlen true"
    assert line() == f"name         --train_name was not given: its default sets {sets}; give one to choose"
    assert "--tie_embeddings true, --rope_base 640000;" in line("--parameterization", "sp", "--varlen", "false")
    assert line("--train_name", "mup") == ""


def test_families_that_the_help_calls_typical() -> None:
    """ "mostly 4096" is that of more than half of the families."""
    values: dict[str, list[str]] = {}

    for family in FAMILIES.names():
        try:
            config = build(family, 16)
        except UserError:
            continue
        fields = {"ctx_len": "block_size", "bias": "attn_bias", "norm_class": "norm"}
        for name, option in OPTIONS.items():
            if "mostly" in option.default and hasattr(config, field := fields.get(name, name)):
                values.setdefault(name, []).append(str(getattr(config, field)).lower())
    assert {"ctx_len", "tie_embeddings", "rope_base", "qk_norm", "skip"} <= set(values)
    for name, found in values.items():
        usual = re.search(r"mostly (\w+)", OPTIONS[name].default)
        assert usual and 2 * sum(v.removesuffix(".0") == usual[1] for v in found) > len(found), (name, found)


def test_the_help_of_eval_names_every_word_of_model_args(capsys: pytest.CaptureFixture) -> None:
    """Also where lm-eval, whose own help has none of them, is not installed."""
    tree = ast.parse((ROOT / "lit_gpt/evals/lm_eval_model.py").read_text(encoding="utf-8"))
    load = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "load")
    words = {argument.arg for argument in load.args.args} - {"cls", "batch_size", "device"}
    assert script_module("eval.py").main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "pretrained" in words and not [word for word in words if f"{word}=" not in text]


@pytest.mark.parametrize(
    ("parsed_by", "words"),
    [
        (fit.main, ["out", "--law", "best_rate", "--x", "x=depth", "--x", "rate=eta0"]),
        (script_module("plots/plot_run.py").main, ["out", "--metric", "a", "--metric=b"]),
    ],
    ids=["jsonargparse", "argparse"],
)
def test_an_option_of_several_values_is_typed_once(parsed_by, words, capsys) -> None:
    """The first ones were forgotten, so that a law read another column than the one that was named."""
    with pytest.raises(SystemExit) as end:
        parsed_by(words)
    name = next(word for word in words if word in ("--x", "--metric"))
    assert end.value.code == 2
    assert f"{name} is there twice. Give all its values after one {name}" in capsys.readouterr().err


def test_examples_can_be_pasted_and_say_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of the tools and of data preparation described options, and showed no command."""
    monkeypatch.setenv("COLUMNS", "80")
    for tool in (inspect, plan, generate, convert):
        parser = tool.build_parser()
        shown = parser.format_help().replace(" \\\n    ", " ")
        assert len(parser.examples) > 1
        for typed, does in parser.examples:
            assert f"  {typed}\n      {does}\n" in shown


@pytest.mark.parametrize("script", ["scripts/prepare_text.py", "scripts/fetch.py"])
def test_the_help_of_data_preparation_shows_commands_that_it_reads(script: str, capsys: pytest.CaptureFixture) -> None:
    module = script_module(script)
    with pytest.raises(SystemExit):
        module.parse(["--help"])
    shown = capsys.readouterr().out.replace(" \\\n    ", " ")
    for typed, _ in module.EXAMPLES:
        assert typed in shown
        words = shlex.split(typed)[2:]
        assert words == ["--list"] or module.parse(words)["output"].startswith("data/")
