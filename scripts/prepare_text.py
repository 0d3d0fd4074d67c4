"""Tokenise text into packed shards.

    python scripts/prepare_text.py --source FOLDER --output data/mine --tokenizer train --vocab_size 32000
    python scripts/prepare_text.py --source SlimPajama-627B --output data/slimpajama --recipe slimpajama \\
        --tokenizer path/to/tokenizer.json

Every option: --help. Killed or crashed, the same command goes on where it was.
"""

from __future__ import annotations

import json
import sys

from lit_gpt.config.bounds import hints
from lit_gpt.config.command import exit_code, parsed
from lit_gpt.config.parsers import Parser
from lit_gpt.data.left_out import sentences
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError

ALIASES = {"--input_dir": "--source", "--output_dir": "--output"}
SEVERAL = ("--source", "--include", "--exclude")  # options that take several values


def summary(meta: dict) -> str:
    """The counts of a prepared folder as a table, and what was left out."""
    lines = [f"{'split':<12}{'tokens':>18}{'documents':>14}{'bytes':>18}{'bytes/token':>13}{'shards':>8}"]
    for split, n in meta["splits"].items():
        ratio = n["bytes"] / n["tokens"]
        lines.append(
            f"{split:<12}{n['tokens']:>18,}{n['documents']:>14,}{n['bytes']:>18,}{ratio:>13.3f}{n['shards']:>8}"
        )
    if "validation" not in meta["splits"]:
        only = sum(n["documents"] for n in meta["splits"].values()) == 1
        lines.append(
            "the source is one document, so none went to validation; add documents, or give a --val_data_dir of its own"
            if only
            else "no document went to validation; to have some, use a --validation_fraction above 0 and a new --output"
        )
    lines.append(f"vocabulary {meta['vocab_size']}, EOS id {meta['eos_id']}")
    return "\n".join(lines + sentences(meta.get("left_out", {})))


def arguments(typed: list[str]) -> list[str]:
    """The command line without aliases, and with the values of `--source a b`, or of several, as one JSON list."""
    groups: list[list[str]] = []
    for word in typed:
        if groups and not word.startswith("--"):
            groups[-1].append(word)
            continue
        name, equals, value = word.partition("=")
        name = ALIASES.get(name, name)
        group = next((g for g in groups if g[0] == name and name in SEVERAL), [name])
        groups = [*(g for g in groups if g is not group), group]
        group += [value] if equals else []
    listed = [[g[0], json.dumps(g[1:])] if g[0] in SEVERAL and len(g) > 2 else g for g in groups]
    switches = {f"--{name}" for name, hint in hints(prepare).items() if hint is bool}
    return [word for g in listed for word in ([*g, "true"] if len(g) == 1 and g[0] in switches else g)]


def parse(typed: list[str]) -> dict:
    """The arguments of prepare(). Raises UserError for words that are no options, and wrong values."""
    parser = Parser(
        prog="prepare_text.py", description="Tokenise text into packed shards.", exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(prepare, as_group=False)
    return parsed(parser, arguments(typed), prepare).as_dict()


def main(words: list[str]) -> None:
    """Run prepare() with the options of the command line. Raises UserError for files that cannot be used, too."""
    try:
        print(summary(prepare(**parse(words))))
    except OSError as e:
        raise UserError(f"{e.filename or 'The output'}: {e.strerror or e}. What is finished is kept.") from e


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
