"""Parsers whose --help is written for people: types in words, defaults as values, and no block of usage.

Parser is jsonargparse's, for commands whose options have types, and PlainParser is Python's own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_gpt.config.explain import explained
from lit_gpt.config.help import Group, Option, about, shown_value, taken, value_of, width, wrapped
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import EXIT_BAD_INPUT
from lit_gpt.utils.once import first_to_say

ALL = 100  # sentences of a meaning
OF_RUNS = (
    "Options of a run, in groups. They are typed as --option value; where the value is true, --option alone is enough. "
    "TOKENS is a count such as 1e9, 10B or 500M. Every option has a default. This page explains what most runs need; "
    "--help GROUP explains a whole group with examples, --help OPTION one option, and --help all everything."
)


class PlainParser(argparse.ArgumentParser):
    """Python's own parser with this help.

    run_options: the options of runs that it has, such as "base_hps.d0", with their defaults in RunConfig. examples:
    command lines for the top of the page, each with what it does.
    """

    run_options: Mapping[str, Any] = {}
    examples: Sequence[tuple[str, str]] = ()

    def format_usage(self) -> str:
        """One line, or a few where it is long: the arguments, and that there are options."""
        words = [_placeholder(action) for action in _listed(self) if not action.option_strings]
        command = self.prog.replace(" [options]", "")  # which jsonargparse puts before the name of a sub-command
        return "\n".join(wrapped(" ".join(["usage:", command, *words, "[options]"]), "", " " * 8)) + "\n"

    def format_help(self, *_: Any) -> str:
        """Usage, examples, the command's own arguments and options, and an overview of those of runs."""
        pages = [self.format_usage().rstrip(), *_paragraph(self.description)]
        shown = [line for typed, does in self.examples for line in (*_command(typed), *wrapped(does, " " * 6))]
        pages += ["\n".join(shown)] if shown else []
        sections: dict[str, list[str]] = {"Commands:": [], "Arguments:": [], "Options:": []}
        for action in _listed(self):
            title = "Options:" if action.option_strings else "Commands:" if _has_commands(action) else "Arguments:"
            sections[title] += [line for option in _described(action) for line in option.in_short(ALL)]
        pages += ["\n".join([title, *lines]) for title, lines in sections.items() if lines]
        if groups := self.of_runs():
            pages += [*_paragraph(OF_RUNS), *(group.in_short() for group in groups)]
        return "\n\n".join([*pages, *_paragraph(self.epilog)]) + "\n"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with a sentence instead of Python's words. ex: what jsonargparse gives."""
        said = f"error: {_sentence(self, message)}\n"
        self.exit(EXIT_BAD_INPUT, said if first_to_say(said, EXIT_BAD_INPUT) else None)

    def _parse_known_args(self, arg_strings: list[str], *more: Any, **others: Any) -> Any:
        """Python's, which takes the last values of an option that is typed twice, and forgets the first in silence.

        Of an option with one value that overrules what a script typed before; one with several would lose some.
        """
        for action in (a for a in self._actions if a.option_strings and a.nargs in ("+", "*")):
            if sum(word.partition("=")[0] in action.option_strings for word in arg_strings) > 1:
                name = action.option_strings[0]
                self.error(f"{name} is there twice. Give all its values after one {name}, with spaces between them")
        return super()._parse_known_args(arg_strings, *more, **others)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Python's, which takes a help that cannot be written for one that was read."""
        (file or sys.stderr).write(message)

    def of_runs(self) -> tuple[Group, ...]:
        """The options of runs that it has, with its own defaults where it has any."""
        own = {a.dest: a.default for a in self._actions if a.dest in self.run_options}
        return taken(own, {name: value for name, value in own.items() if value != self.run_options[name]})


class Parser(ArgumentParser, PlainParser):  # type: ignore[misc]
    """jsonargparse's parser with this help, which it takes from the class that comes after it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with a sentence; raises what jsonargparse does where the caller wants to make one itself."""
        if not self.exit_on_error:
            super().error(message, ex)
        PlainParser.error(getattr(ex, "subcommand_parser", None) or self, message)

    def answer(self, words: Sequence[str]) -> None:
        """Print the help of the topic that follows --help among the words, and end; return where none is asked for.

        Raises UserError for a topic that is no group and no option of runs.
        """
        place = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("-h", "--help")), len(words))
        asked = [part for word in words[place : place + 2] for part in word.split("=", 1)][1:2]
        if asked:
            print(about(asked[0], self.of_runs()))
            sys.exit(0)


def _command(typed: str) -> list[str]:
    """A command in lines that can be pasted; a long one goes on before an option."""
    parts = re.split(r" (?=--\w)", typed)
    lines = [f"  {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= width():
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {part}")
    return lines


def _sentence(parser: PlainParser, message: str) -> str:
    """The parser's message in a sentence that names the option and what it takes."""
    kinds = {action.dest: getattr(action, "_typehint", None) or action.type or str for action in parser._actions}
    options = [action.dest for action in parser._actions if action.option_strings]
    return explained(message, options, RunConfig if parser.run_options else lambda: None, kinds)


def _described(action: argparse.Action) -> Iterator[Option]:
    """An argument or option in words; each command of a parser that has several.

    What follows "; default" in its help is the default in words.
    """
    if _has_commands(action):
        parsers: Any = action.choices
        for command, parser in parsers.items():
            yield Option(command, "", " ".join((parser.description or "").split()))
        return
    names = [name for name in action.option_strings if name.startswith("--")]
    meaning, _, default = (action.help or "").partition("; default")
    default = default.lstrip(": ").rstrip(".")
    if not default and names and action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS):
        default = shown_value(action.default)
    meaning = " ".join(meaning.split())
    if re.match("[a-z-]+[ ,;]", meaning):
        meaning = meaning[0].upper() + meaning[1:]
    if action.required and names:
        meaning = f"{meaning.rstrip('.')} (required)"
    yield Option(names[0] if names else _placeholder(action), _value(action) if names else "", meaning, default)


def _placeholder(action: argparse.Action) -> str:
    """An argument as usage names it: path, [other], RUN ..."""
    name = str(action.metavar or action.dest)
    if _has_commands(action):
        return "COMMAND"
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _value(action: argparse.Action) -> str:
    """What follows the name of an option: nothing for a switch, else the type in words."""
    if action.nargs == 0 or isinstance(action, argparse._HelpAction):
        return ""
    hint = getattr(action, "_typehint", action.type)
    words = f"one of: {', '.join(map(str, action.choices))}" if action.choices else value_of(hint or str)
    if isinstance(action.metavar, str) and not action.metavar.startswith("{"):  # which is jsonargparse's
        words = action.metavar
    return f"{words} ..." if action.nargs in ("+", "*") else words


def _has_commands(action: argparse.Action) -> bool:
    """Whether it takes a command with a parser of its own."""
    return isinstance(action.choices, dict) and not action.option_strings


def _listed(parser: PlainParser) -> list[argparse.Action]:
    """The actions of a command's own: those of runs stand in groups, and base_hps is one of these."""
    of_runs = {name for option in parser.run_options for name in (option, option.partition(".")[0])}
    return [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest not in of_runs]


def _paragraph(text: str | None) -> list[str]:
    return ["\n".join(wrapped(" ".join(text.split()), ""))] if text else []
