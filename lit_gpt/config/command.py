"""How every command of this project ends, and how a plain function becomes one.

if __name__ == "__main__":
    run_command(main)                 main(words) -> exit code; main parses them itself
    run_command(command_of(main))     main's parameters are the options, its docstring is their help

A file that imports torch, which takes seconds, calls answer_early above that import.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from jsonargparse import ArgumentError, Namespace

from lit_gpt.config.explain import explained
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.utils.files import NO_ROOM, not_written
from lit_gpt.utils.launcher import world_size
from lit_gpt.utils.once import first_to_say
from lit_gpt.utils.streams import make_warnings_plain

Main = Callable[[list[str]], int | None]


def exit_code(main: Main, words: Sequence[str]) -> int:
    """What main(words) returns, 0 for None.

    A UserError, a full disk, what is not permitted, or Ctrl-C is one sentence on stderr and a code.
    """
    try:
        return main(list(words)) or 0
    except SystemExit as left:  # a parser's, after --help or its own sentence on stderr
        return left.code if isinstance(left.code, int) else _said(left.code, 1) if left.code else 0
    except KeyboardInterrupt:  # training listens for it itself, and saves
        return _said("stopped by Ctrl-C; the same command starts it again.", 128 + signal.SIGINT)
    except UserError as error:
        return _told(error)
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename:
            return _told(UserError(f"{error.filename} cannot be used: {error.strerror}. Permit it, or give another."))
        if error.errno not in NO_ROOM:
            raise
        return _told(not_written(error))


def _told(error: UserError) -> int:
    return _said(f"error: {error}", error.code)


def _said(text: str, code: int) -> int:
    """The code; the text on stderr, once for all processes of a torchrun."""
    if first_to_say(text, code):
        print(text, file=sys.stderr)
    return code


def run_command(main: Main) -> NoReturn:
    """End the process with the code of its command line."""
    make_warnings_plain()
    end(whatever_comes(lambda: _carried_out(main)))


def whatever_comes(work: Callable[[], int]) -> int:
    """What work() returns; 1 for an error that nobody expected in one of several processes, told as torch tells it.

    Of a process alone it goes on, so that `python -m pdb` gets it.
    """
    try:
        return work()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        if world_size() == 1:
            raise
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1


def end(code: int, at_once: bool = False) -> NoReturn:
    """End the process with `code`; one of several that failed, at once, that is without its exit hooks.

    An interpreter that ends in good order takes down connections that other processes still use: one was seen to abort
    (SIGABRT) in place of its code.
    """
    if at_once or (code and world_size() > 1):
        for stream in (sys.stdout, sys.stderr):  # a pipe or a file holds back what was printed until then
            with suppress(AttributeError, OSError, ValueError):  # there is none, it takes nothing, or it is closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def answer_early(name: str, read: Callable[[list[str]], Any]) -> None:
    """End the process where its words ask for help or are wrong; return where they are right.

    --help and a mistyped option then do not wait for the imports below the call. name: __name__ of the file; in any but
    the one that was started, "__main__", nothing happens. read: parses the words, as run_command's main does once more.
    """
    right = list[Any]()  # what was read; nothing after --help, whose code is 0, too
    if name == "__main__" and ((code := _carried_out(lambda words: right.append(read(words)))) or not right):
        sys.exit(code)


def _carried_out(main: Main) -> int:
    """exit_code of the command line; a file that cannot be used is a sentence and a code, too."""
    try:
        code = exit_code(main, sys.argv[1:])
        return _flushed() or code
    except BrokenPipeError:  # whoever reads the output has enough, such as `head`
        _drop_output()
        return 0
    except OSError as error:
        where = error.filename2 or error.filename or "a file"
        return _told(UserError(f"{where} cannot be used: {error.strerror or error}. Give another path."))


def _flushed() -> int:
    """0, or the code for an output that is on a full disk."""
    try:
        if sys.stdout:  # None where it was closed, as with >&-
            sys.stdout.flush()
        return 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _drop_output()
        return _told(not_written(error, "Standard output"))


def _drop_output() -> None:
    """What is left of it goes nowhere: Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_of(function: Callable[..., int | None]) -> Main:
    """The function as a command: --name value for each parameter, --help from its docstring."""
    read = reader_of(function)
    return lambda words: function(**read(words))


def reader_of(function: Callable[..., Any]) -> Callable[[list[str]], dict[str, Any]]:
    """What turns words into the function's arguments, for command_of and answer_early."""

    def read(words: list[str]) -> dict[str, Any]:
        parser = Parser(description=(function.__doc__ or "").split("\n")[0], exit_on_error=False)
        parser.add_function_arguments(function, as_group=False)
        return parsed(parser, words, function).as_dict()

    return read


def parsed(parser: Parser, words: list[str], function: Callable[..., Any]) -> Namespace:
    """The function's arguments among the words of a parser made with exit_on_error=False.

    Raises UserError for words that are no options, and for wrong values.
    """
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        kinds = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
        options = [key for key, _ in parser.get_defaults().items()]
        raise UserError(explained(str(error), options, function, kinds)) from error
