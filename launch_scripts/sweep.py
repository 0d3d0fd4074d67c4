"""Run every row of a table as a pretrain.py command, and say which was best.

    python launch_scripts/sweep.py launch_scripts/lr_batch_d8.csv --output out/lr_batch -- \\
        --train_data_dir data/mine --val_data_dir data/mine --train_model transformer --depth 8 --train_name mup

The table is CSV: a column `name`, and one column per option of pretrain.py, without the dashes; an empty
cell leaves the option out. What follows `--` goes to every row. A row lives in <output>/<name>. Run the
same command again after anything: finished rows are skipped, interrupted ones go on. With --gpus 0,1,2,3
four rows run at a time, each on a GPU of its own. ladder.py does the same and more, for studies.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.lab.processes import Settings, devices_of
from lit_gpt.lab.results import METRIC
from lit_gpt.lab.rows import read_table


def read(argv: Sequence[str]) -> tuple[Namespace, Sequence[str]]:
    """The parsed options of this script, and those of pretrain.py after them."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = PlainParser(
        description=(__doc__ or "").split("\n")[0], epilog="Options of pretrain.py for all rows follow after --."
    )
    parser.add_argument("table", type=Path, help="CSV file: a column for each option, and a row for each run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep")
    parser.add_argument(
        "--launcher",
        default=sys.executable,
        help="what starts a run, such as 'torchrun --nproc_per_node 8'; default: this Python",
    )
    parser.add_argument(
        "--gpus", default="", help="GPUs that run one row each at a time, such as 0,1,2,3; default: one row on all GPUs"
    )
    parser.add_argument("--metric", default=METRIC, help="key of summary.json to sort by, lowest first")
    return parser.parse_args(argv[:split]), argv[split + 1 :]


answer_early(__name__, read)

from lit_gpt.lab.ladder import Ladder
from lit_gpt.lab.study import Study


def main(argv: Sequence[str]) -> int:
    """Run the sweep and print the table. Returns 0, 1 when a row failed, 75 when interrupted."""
    given, common = read(argv)
    settings = Settings(tuple(shlex.split(given.launcher)), devices_of(given.gpus, 1), common=tuple(common))
    return Ladder(Study(tuple(read_table(given.table))), given.output, given.metric).run(settings)


if __name__ == "__main__":
    run_command(main)
