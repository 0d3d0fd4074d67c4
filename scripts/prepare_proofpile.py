"""Turn text into one stream of tokens for eval_proofpile.py: 16-bit numbers without a header.

    python scripts/prepare_proofpile.py --source papers/ --output proofpile.bin --tokenizer out/my_run/tokenizer

Documents follow each other, each after the token that ends the one before. Proof-Pile itself is text, too
(hoskinson-center/proof-pile on the Hub): download its test files, and give their folder.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from lit_gpt.config.command import command_of, run_command
from lit_gpt.config.model import IGNORE
from lit_gpt.data import open_corpus
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError
from lit_gpt.utils.files import told, write_bytes

WINDOW = 4096  # tokens read at a time


def main(
    source: str,
    output: Path,
    tokenizer: str,
    include: str | None = None,
    max_tokens: float = 1e8,
) -> None:
    """Turn text into one stream of tokens for eval_proofpile.py.

    Args:
        source: a file or folder of text, as of prepare_text.py
        output: the file to write, .bin
        tokenizer: the one that the model was trained with: bytes, a tokenizer.json or its folder
        include: a pattern of file names, such as *.tex; default: text files of all kinds that are known
        max_tokens: stop after so many
    """
    with tempfile.TemporaryDirectory(dir=output.absolute().parent) as folder:
        prepare(source, f"{folder}/data", tokenizer=tokenizer, include=include, validation_fraction=0.0)
        corpus = open_corpus(f"{folder}/data", "train", WINDOW, seed=0, shuffle=False, repeat=False)
        count = min(corpus.num_samples, math.ceil(max_tokens / WINDOW))
        # A window begins with the last token of the one before.
        tokens = np.concatenate([corpus.sample(i)[bool(i) :] for i in range(count)])[: int(max_tokens)]
    tokens = tokens[tokens != IGNORE]
    if tokens.max() >= 2**16:
        raise UserError(f"The tokenizer {tokenizer} has more than 65,536 tokens; write a .npy with numpy instead.")
    with told(output):
        write_bytes(output, tokens.astype("<u2").tobytes())
    print(f"{output}: {len(tokens):,} tokens")


if __name__ == "__main__":
    run_command(command_of(main))
