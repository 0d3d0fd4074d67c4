"""How much of an evaluation's texts, or of validation data, is in the training data.

python -m lit_gpt.tools.overlap --train_data_dir data/mine --texts questions.jsonl
python -m lit_gpt.tools.overlap --train_data_dir data/mine --val_data_dir data/mine --n 50

lit_gpt/evals/overlap.py says what is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.command import command_of, run_command
from lit_gpt.data.kept_tokenizer import describe_tokenizer
from lit_gpt.data.stream import TokenStream
from lit_gpt.data.tokenizer import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.overlap import NGRAM, Overlap, overlap, streams_of
from lit_gpt.tools._cli import local_path
from lit_gpt.utils.files import json_lines, write_text

BLOCK = 2048  # tokens of an example of validation data that does not say where documents end


def read_texts(path: Path, field: str) -> list[tuple[str, str]]:
    """(id or number of the line, text) of JSON lines. Raises UserError, with the number of the line, for others."""
    found = [_text(row, field, where) for where, row in json_lines(path)]
    if not found:
        raise UserError(f'{path} has no texts. Write one JSON object on each line, such as {{"{field}": "..."}}.')
    return found


def _text(row: Any, field: str, where: str) -> tuple[str, str]:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise UserError(f'{where}: {field} is missing or no text. Write an object such as {{"{field}": "..."}}.')
    return str(row.get("id", where.rpartition(" ")[2])), row[field]


def tokenizer_for(data_dir: str, given: str | None, mixture: str | None) -> Tokenizer:
    """The one that was asked for, else that of the data. Raises UserError where neither is known."""
    if given is not None:
        return load_tokenizer(given)
    kept = describe_tokenizer(data_dir, mixture)
    if kept is None or not kept.present:
        raise UserError(f"{data_dir} does not say which tokenizer it was made with. Give --tokenizer.")
    return kept.load()


def documents(stream: TokenStream) -> Iterator[np.ndarray]:
    """The documents of a stream, without the token that ends them; blocks where no such token is known."""
    tokens = stream.read(0, stream.num_tokens)
    if stream.eos_id is None:
        yield from (tokens[i : i + BLOCK] for i in range(0, len(tokens), BLOCK))
        return
    ends = [-1, *np.flatnonzero(tokens == stream.eos_id).tolist(), len(tokens)]
    yield from (tokens[a + 1 : b] for a, b in pairwise(ends) if b > a + 1)


def report(names: Sequence[str], found: Overlap) -> dict[str, Any]:
    """What was found, ready for JSON."""
    return {
        "n": found.n,
        "training_tokens": found.tokens,
        "examples": len(found.shares),
        "compared": len(found.compared),
        "contaminated": found.contaminated,
        "mean_share": found.mean,
        "by_example": [{"id": name, "share": share} for name, share in zip(names, found.shares)],
    }


def compare(
    train_data_dir: str,
    texts: Path | None = None,
    val_data_dir: str | None = None,
    tokenizer: str | None = None,
    n: int = NGRAM,
    field: str = "text",
    data_mixture: str | None = None,
    output: Path = Path("overlap.json"),
) -> None:
    """Share of examples with an n-gram of tokens that the training data has, too.

    Args:
        train_data_dir: folder of the training data.
        texts: file of JSON lines, a text each.
        val_data_dir: folder of validation data, each document of which is an example; instead of texts.
        tokenizer: of the texts, bytes or a tokenizer.json; by default that of the training data.
        n: tokens of an n-gram.
        field: name of the text in the lines of texts.
        data_mixture: JSON file of the mixture that was trained on; by default the training split of the folder.
        output: where the shares of all examples go as JSON.
    """
    if (texts is None) == (val_data_dir is None):
        both = "and not both" if texts else "for the examples"
        raise UserError(f"Give --texts FILE.jsonl or --val_data_dir DIR, {both}.")
    if n < 1:
        raise UserError(f"--n is {n}; give a number of tokens from 1 on, such as {NGRAM}.")
    streams = streams_of(train_data_dir, "train", data_mixture)
    if texts is not None:
        names, lines = zip(*read_texts(local_path(texts), field))
        encode = tokenizer_for(train_data_dir, tokenizer, data_mixture).encode
        examples = [np.asarray(encode(line), np.int64) for line in lines]
    else:
        examples = [d for stream in streams_of(str(val_data_dir), "validation") for d in documents(stream)]
        names = [str(i) for i in range(1, len(examples) + 1)]
    found = report(names, overlap(examples, streams, n, show=True))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(found, indent=1) + "\n")
    print(f"{found['examples']:,} examples, {found['examples'] - found['compared']:,} of them shorter than {n} tokens")
    if found["compared"]:
        print(f"with an n-gram of the training data: {found['contaminated']:.1%}")
        print(f"n-grams that are in the training data, mean over examples: {found['mean_share']:.1%}")
    print(f"kept: {output}")


main = command_of(compare)

if __name__ == "__main__":
    run_command(main)
