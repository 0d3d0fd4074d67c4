"""Run every row of a table as a pretrain.py command, and say which was best.

    python launch_scripts/sweep.py launch_scripts/lr_batch_d8.csv --output out/lr_batch -- \\
        --train_data_dir data/mine --val_data_dir data/mine --train_model transformer --depth 8 --train_name mup

The table is CSV: a column `name`, and one column per option of pretrain.py, without the dashes; an empty
cell leaves the option out. What follows `--` goes to every row. A row lives in <output>/<name>. Run the
same command again after anything: finished rows are skipped, interrupted ones go on. With --gpus 0,1,2,3
four rows run at a time, each on a GPU of its own.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from lit_gpt.config.bounds import Text
from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.utils.files import write_text

PRETRAIN = Path(__file__).resolve().parents[1] / "pretrain.py"
OURS = ("out_dir", "resume")  # options that the sweep itself gives
FOLDER = Text("a name", 128, without="/\\")  # also a tracker's name of the run
Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """The rows of a table, less empty cells. Raises UserError for a table that cannot be run."""
    if not path.is_file():
        raise UserError(f"There is no table {path}. Give a CSV file with a column 'name' and columns of options.")
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line] or [[]]
    if uneven := [line for line in lines if len(line) != len(header)]:
        raise UserError(f"{path}: the header has {len(header)} cells, the row {','.join(uneven[0])!r} has not.")
    rows = [{key: cell for key, cell in zip(header, line) if cell} for line in lines]
    names = [row.get("name", "") for row in rows]
    unusable = [name for name in names if not FOLDER.allows(name) or name.startswith(".")]
    if not rows or unusable or len(set(names)) < len(names):
        raise UserError(f"{path} needs rows that each have a 'name' of their own, usable as a folder; found {names}.")
    if taken := [key for key in OURS if key in header]:
        raise UserError(f"{path} has the column {taken[0]!r}, which the sweep sets itself. Remove it.")
    return rows


def command(row: Row, launcher: Sequence[str], common: Sequence[str], output: Path) -> list[str]:
    """The command line of one row; later options overrule earlier ones, so the row overrules `common`.

    Trackers show the rows as a group named like the output folder.
    """
    tracked = ["--tracker_group", output.resolve().name, "--tracker_name", row["name"]]
    options = [word for key, value in row.items() if key != "name" for word in (f"--{key}", value)]
    ours = ["--out_dir", str(output / row["name"]), "--resume", "auto"]
    return [*launcher, str(PRETRAIN), *tracked, *common, *options, *ours]


def summary(folder: Path) -> dict[str, Any]:
    """The summary.json of the run below a row's folder, empty while there is none."""
    found = sorted(folder.glob("*/summary.json"), key=os.path.getmtime)
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def mark_folder(row: Row, output: Path) -> None:
    """Write row.json, which says of which row this folder is. Raises UserError when it is another's of this name."""
    note = output / row["name"] / "row.json"
    if note.is_file() and (before := json.loads(note.read_text(encoding="utf-8"))) != row:
        raise UserError(f"{note.parent} was run as {before}, the table now says {row}. Give the row a new name.")
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(row) + "\n")


class Children:
    """The processes of the rows that run now. SIGTERM is passed on to them and Ctrl-C reaches them
    by itself; both end the sweep.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.running: set[subprocess.Popen[bytes]] = set()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        if number == signal.SIGTERM:
            for process in self.running.copy():
                process.terminate()

    def run(self, words: Sequence[str], gpu: str | None, log: Path) -> int:
        """Its exit code. gpu: the only one that it sees, and its output goes to `log`; None is all, and here."""
        environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        with log.open("ab") if gpu is not None else contextlib.nullcontext() as output:
            process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
            self.running.add(process)
            code = process.wait()
        self.running.discard(process)
        self.stopping |= code == os.EX_TEMPFAIL  # interrupted by somebody else
        return code


def sweep(
    rows: Sequence[Row], launcher: Sequence[str], common: Sequence[str], output: Path, gpus: Sequence[str] = ()
) -> tuple[list[Row], bool]:
    """Run what is not finished. Returns the rows that failed, and whether it was interrupted.

    gpus: one row at a time on each of them; without any, one row at a time on all there are.
    """
    for row in rows:
        mark_folder(row, output)
    children, failed = Children(), []
    waiting = iter(list(enumerate(rows, 1)))

    def work(gpu: str | None) -> None:
        for number, row in waiting:  # shared by all workers; taking the next one is atomic
            if children.stopping:
                return
            label = f"[{number}/{len(rows)}] {row['name']}"
            if summary(output / row["name"]).get("finished"):
                print(f"{label}: finished before", flush=True)
                continue
            words, log = command(row, launcher, common, output), output / row["name"] / "log.txt"
            where = "" if gpu is None else f"on GPU {gpu}, output in {log}: "
            print(f"{label}: {where}{shlex.join(words)}", flush=True)
            if code := children.run(words, gpu, log):
                print(f"{label}: ended with exit code {code}", flush=True)
                failed.extend([row] * (not children.stopping))

    with ThreadPoolExecutor(len(gpus) or 1) as pool:
        list(pool.map(work, gpus or [None]))
    return failed, children.stopping


def results(rows: Sequence[Row], output: Path, metric: str) -> str:
    """Every row with its result, lowest first, as a table."""
    found = [(row, summary(output / row["name"])) for row in rows]
    found.sort(key=lambda pair: (not pair[1].get("finished"), pair[1].get(metric) is None, pair[1].get(metric)))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = [[*keys, metric, "state"]]
    for row, run in found:
        value = run.get(metric)
        state = "finished" if run.get("finished") else f"at step {run['step']}" if run else "no result"
        table.append([*(row.get(key, "") for key in keys), "-" if value is None else f"{value:.4f}", state])
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in table)


def main(argv: Sequence[str]) -> int:
    """Run the sweep and print the table. Returns 0, 1 when a row failed, 75 when interrupted."""
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
    parser.add_argument("--metric", default="metric/val_loss@1x", help="key of summary.json to sort by, lowest first")
    given = parser.parse_args(argv[:split])
    rows = read_table(given.table)
    gpus = [gpu for gpu in given.gpus.split(",") if gpu]
    failed, interrupted = sweep(rows, shlex.split(given.launcher), argv[split + 1 :], given.output, gpus)
    print(f"\n{results(rows, given.output, given.metric)}")
    if interrupted:
        print("interrupted; the same command goes on")
        return os.EX_TEMPFAIL
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
