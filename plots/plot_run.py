"""Curves of one or several runs, from their metrics.jsonl.

    python plots/plot_run.py out/RUN
    python plots/plot_run.py out/RUN_A out/RUN_B --output val.png --metric metric/val_loss@1x
    python plots/plot_run.py out/experts --metric metric/val_loss@1x metric/maxvio_batch_avg --json last.json

One run without --metric: training and validation loss with the learning rate. Several metrics are
panels beside each other; a run that does not log one is left out of its panel. Behind the name of a run that has not
finished stands its state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.lab.run_files import unfinished
from lit_gpt.lab.runs import run_folders
from lit_gpt.metrics.curve import TRAIN, draw_loss_curve, draw_overlay
from lit_gpt.metrics.summary import METRICS_FILE
from lit_gpt.utils.files import write_text


def main(arguments: Sequence[str]) -> None:
    """Draw the figure and print its path."""
    parser = PlainParser(
        description="Curves of one or several runs over tokens, of training or of any other metric that they logged."
    )
    parser.examples = [
        (
            "python plots/plot_run.py out/run_a out/run_b --metric metric/train_loss metric/grad_norm",
            "one panel for each",
        )
    ]
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders that hold some")
    parser.add_argument("--output", type=Path, default=Path("run.png"), help="picture to write, a PNG file")
    parser.add_argument("--metric", nargs="+", help=f"keys to draw; default {TRAIN}, and for one run its loss curve")
    parser.add_argument("--json", type=Path, help="file for the last values shown, by metric and run; default: none")
    parser.add_argument(
        "--bytes_per_token", type=float, help="for the loss curve's axis in bits per byte; default: as validated"
    )
    given = parser.parse_args(arguments)
    runs = list({folder.resolve(): folder for path in given.runs for folder in _runs(path)}.values())
    states = list(map(unfinished, runs))
    if len(runs) == 1 and not given.metric:
        draw_loss_curve(runs[0], given.bytes_per_token, given.output, states[0])
    else:
        last = draw_overlay(runs, given.metric or [TRAIN], given.output, states)
        if given.json:
            write_text(given.json, json.dumps(last, indent=1) + "\n")
    print(given.output)


def _runs(path: Path) -> list[Path]:
    """A folder with metrics, or else the runs that it holds; itself where it holds none, for an error that names it."""
    below = [] if (path / METRICS_FILE).is_file() or not path.is_dir() else run_folders(path)
    return below or [path]


if __name__ == "__main__":
    run_command(main)
