"""Tokenise text into packed shards.

    python scripts/prepare_text.py --source FOLDER --output data/mine --tokenizer train --vocab_size 32000
    python scripts/prepare_text.py --source SlimPajama-627B --output data/slimpajama --recipe slimpajama \\
        --tokenizer path/to/tokenizer.json

Every option: --help. Killed or crashed, the same command goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.data.prepare import prepare
from lit_gpt.errors import EXIT_BAD_INPUT, UserError


def summary(meta: dict) -> str:
    """The counts of a prepared folder as a table."""
    lines = [f"{'split':<12}{'tokens':>18}{'documents':>14}{'bytes':>18}{'bytes/token':>13}{'shards':>8}"]
    for split, n in meta["splits"].items():
        ratio = n["bytes"] / n["tokens"]
        lines.append(
            f"{split:<12}{n['tokens']:>18,}{n['documents']:>14,}{n['bytes']:>18,}{ratio:>13.3f}{n['shards']:>8}"
        )
    if "validation" not in meta["splits"]:
        lines.append(
            "no document went to validation; to have some, use a larger --validation_fraction and a new --output"
        )
    lines.append(f"vocabulary {meta['vocab_size']}, EOS id {meta['eos_id']}")
    return "\n".join(lines)


def main() -> int:
    """Run prepare() with the options of the command line; the exit code."""
    try:
        print(summary(auto_cli(prepare, as_positional=False)))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
