"""Download a part of a public corpus and turn it into packed shards. What to type, and every option: --help."""

from __future__ import annotations

from pathlib import Path

from lit_gpt.config.bounds import hints
from lit_gpt.config.command import parsed, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.data.prepare.corpora import CORPORA, listing
from lit_gpt.data.prepare.fetch import plan_fetch
from lit_gpt.data.prepare.summary import next_step, not_prepared, summary
from lit_gpt.errors import UserError

ABOUT = (
    "Download a part of a public corpus and turn it into shards of token ids, which pretrain.py reads. "
    "Stopped anywhere, the same command goes on where it was; with more --shards it adds files."
)
EXAMPLES = (
    ("python scripts/fetch.py --list", "the corpora, their sizes and licences"),
    (
        "python scripts/fetch.py fineweb_edu --shards 2 --output data/fineweb_edu --tokenizer gpt2",
        "two files of one of them",
    ),
)


def arguments(words: list[str]) -> list[str]:
    """The words, with the name of the corpus as an option and `true` behind the switches that stand alone."""
    words = ["--name", *words] if words and not words[0].startswith("-") else words
    switches = {f"--{name}" for name, hint in hints(plan_fetch).items() if hint is bool}
    followed = zip(words, [*words[1:], "--"])
    return [
        w for word, after in followed for w in ([word, "true"] if word in switches and after[:2] == "--" else [word])
    ]


def parse(words: list[str]) -> dict:
    """The arguments of plan_fetch(). Raises UserError for words that are no options, and wrong values."""
    parser = Parser(prog="fetch.py NAME", description=ABOUT, exit_on_error=False, allow_abbrev=False)
    parser.examples = EXAMPLES
    parser.add_argument("--list", action="store_true", help="print the table of corpora and stop")
    parser.add_function_arguments(plan_fetch, as_group=False)
    return {name: value for name, value in parsed(parser, arguments(words), plan_fetch).items() if name != "list"}


def main(words: list[str]) -> None:
    """Fetch what the command line names. Raises UserError for files that cannot be used, too."""
    if "--list" in words:
        print(listing())
        return
    if not words:
        raise UserError(f"Type the name of a corpus: {', '.join(CORPORA)}. --list describes them.")
    values = parse(words)
    try:
        plan = plan_fetch(**values)
        print(plan, flush=True)
        meta = plan.run()
    except OSError as error:
        raise not_prepared(error, Path(values["output"] or f"data/{values['name']}")) from error
    print(summary(meta))
    print(next_step(plan.folder, meta))


if __name__ == "__main__":
    run_command(main)
