"""Tokenise text into packed shards. What to type, and every option: --help."""

from __future__ import annotations

import json
from pathlib import Path

from lit_gpt.config.bounds import hints
from lit_gpt.config.command import parsed, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.data.prepare import prepare
from lit_gpt.data.prepare.summary import next_step, not_prepared, summary

ALIASES = {"--input_dir": "--source", "--output_dir": "--output"}
ABOUT = (
    "Turn text into shards of token ids, which pretrain.py --train_data_dir reads. Killed or crashed, the same command "
    "goes on where it was. What counts as text, and what is left out: docs/data.md."
)
EXAMPLES = (
    (
        "python scripts/prepare_text.py --source my_text --output data/mine --tokenizer train --vocab_size 2048",
        "a folder of text files, with a tokenizer of its own",
    ),
    (
        "python scripts/prepare_text.py --source a.jsonl b.parquet --output data/more --tokenizer data/mine",
        "records, with the tokenizer of data that was prepared before",
    ),
    (
        "python scripts/prepare_text.py --source my_code --include '*.py' --output data/code --tokenizer gpt2",
        "some files of a folder, with a tokenizer in the local Hugging Face cache",
    ),
)
SEVERAL = ("--source", "--include", "--exclude")  # options that take several values


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
    parser = Parser(prog="prepare_text.py", description=ABOUT, exit_on_error=False, allow_abbrev=False)
    parser.examples = EXAMPLES
    parser.add_function_arguments(prepare, as_group=False)
    return parsed(parser, arguments(typed), prepare).as_dict()


def main(words: list[str]) -> None:
    """Run prepare() with the options of the command line. Raises UserError for files that cannot be used, too."""
    values = parse(words)
    folder = Path(values["output"])
    try:
        meta = prepare(**values)
    except OSError as error:
        raise not_prepared(error, folder) from error
    print(summary(meta))
    if values["tokenizer"] == "train" and meta["vocab_size"] < values["vocab_size"]:
        print(
            f"The vocabulary is smaller than --vocab_size {values['vocab_size']}: the text has no more parts to join."
        )
    print(next_step(folder, meta))


if __name__ == "__main__":
    run_command(main)
