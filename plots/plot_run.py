"""Curves of one or several runs, from their metrics.jsonl.

    python plots/plot_run.py out/RUN
    python plots/plot_run.py out/RUN_A out/RUN_B --output val.png --metric metric/val_loss@1x

One run without --metric: training and validation loss with the learning rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.errors import EXIT_BAD_INPUT, UserError
from lit_gpt.metrics.curve import TRAIN, draw_loss_curve, draw_overlay


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure and print its path; returns the exit code."""
    parser = argparse.ArgumentParser(description="Curves of one or several runs, over tokens.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, holds metrics.jsonl")
    parser.add_argument("--output", type=Path, default=Path("run.png"), help="PNG to write")
    parser.add_argument("--metric", help=f"key to draw; default {TRAIN}, and for one run its loss curve")
    parser.add_argument("--bytes_per_token", type=float, help="adds an axis in bits per byte (loss curve)")
    given = parser.parse_args(arguments)
    try:
        if len(given.runs) == 1 and not given.metric:
            path = draw_loss_curve(given.runs[0], given.bytes_per_token, given.output)
        else:
            path = draw_overlay(given.runs, given.metric or TRAIN, given.output)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return EXIT_BAD_INPUT
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
