"""Random kills of whole runs on a CPU: what is lost, torn, refused at the restart, or left over.

    python benchmarks/faults.py --kills 200 --jobs 2
    python benchmarks/faults.py --kills 30 --ranks 4 --output docs/benchmarks/faults_4_ranks.json

A run of a tiny model saves every fourth step. It is started by the same command again and again, and killed (SIGKILL)
at a moment drawn evenly from the time that an undisturbed run takes, until it comes to its end; then another run
begins, until there were enough kills. With --ranks the command is torchrun's, and a kill hits the launcher, one rank,
or all processes, drawn as well. Nothing of the project runs in this process but the check of the checkpoints.

Counted after every kill and every end:

    lost        the newest checkpoint is older than one that was published before, or a logged step is missing
    torn        a published checkpoint is not what was written, by its sums
    refused     a start that nobody killed ended with a code other than 0, such as for what the kill before it left
    left over   files that an undisturbed run does not have, at the end
    orphans     processes that still ran 60 seconds after a kill
    different   at the end, a weight, a number of the optimizer's state, or a logged loss differs by a bit

Exit code 1 when any count but that of the kills is not 0.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.data.formats.packed import write_shard
from lit_gpt.utils.files import write_text


def main(kills: int = 200, ranks: int = 1, jobs: int = 2, output: Path | None = None, keep: Path | None = None) -> int:
    """Kill training runs at random moments, continue them, and count what was lost.

    Args:
        kills: number of kills.
        ranks: processes of a run; more than one under torchrun.
        jobs: number of runs at a time.
        output: JSON file for the counts.
        keep: an empty folder for the runs; those in which something was wrong stay in it; default: a temporary one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = keep or Path(temporary)
        data = place / "data"
        data.mkdir(parents=True)
        tokens = np.random.default_rng(0).integers(0, 64, STEPS * BATCH * CONTEXT + 1).astype(np.uint16)
        write_shard(data / "train_0000000000.bin", tokens)
        normal, counted = Undisturbed(data, place / "undisturbed", ranks), Kills(kills)
        numbers = iter(range(10**6))

        def work(_: int) -> None:
            while counted.more():
                with counted.lock:
                    number = next(numbers)
                disturbed(number, data, place / f"run-{number}", ranks, normal, counted)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, range(jobs)))
        counted.bar.close()
    row: dict[str, Any] = {"ranks": ranks, "steps": STEPS, "save_step": SAVE_STEP, **counted.counts}
    row |= {"seconds_undisturbed": round(normal.seconds, 1), "torch": torch.__version__}
    print("\n".join(f"{name:20} {value}" for name, value in row.items()))
    if output:
        write_text(output, json.dumps(row, indent=2) + "\n")
    return int(any(counted.counts[name] for name in COUNTS))


answer_early(__name__, reader_of(main))

import torch

from lit_gpt.checkpoint import all_checkpoints, damage
from lit_gpt.checkpoint.untrusted import read_tensors, stored_shapes

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVE_STEP, BATCH, CONTEXT = 120, 4, 4, 64
OPTIONS = {
    "train_model": "transformer",
    "depth": 2,
    "ar": 32,
    "train_name": "mup",
    "ctx_len": CONTEXT,
    "vocab_size": 64,
    "micro_bsz": 1,
    "total_bsz": BATCH * CONTEXT,
    "max_tokens": STEPS * BATCH * CONTEXT,
    "base_hps.d0": 2,
    "base_hps.b0": BATCH * CONTEXT,
    "base_hps.warmup_tokens": 0,
    "save_step": SAVE_STEP,
    "log_step": 1,
    "resume": "auto",
}
# Its name in the environment marks all processes of one start: torchrun's ranks have sessions of their own.
MARK = "SCALELAB_FAULTS"
GRACE = 60.0  # seconds that orphans have; they leave by themselves within 30 (lit_gpt/utils/signals.py)
COUNTS = ("lost", "torn", "refused", "left over", "orphans", "different")


class Start:
    """One start of the run in `folder`, with all of its processes."""

    def __init__(self, data: Path, folder: Path, ranks: int):
        self.mark = f"{folder.name}-{time.time_ns()}"
        options = {"train_data_dir": data, "out_dir": folder, **OPTIONS}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, str(ROOT / "pretrain.py"), *(f"--{k}={v}" for k, v in options.items())]
        environment = os.environ | {MARK: self.mark, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.said = folder.with_suffix(".txt").open("ab")
        self.process = subprocess.Popen(command, env=environment, stdout=self.said, stderr=self.said)

    def processes(self) -> list[int]:
        """Ids of those that still run, the launcher first, which has this environment only once Python has begun."""
        found = [self.process.pid] if self.process.poll() is None else []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0")
                dead = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if marked and not dead and int(path.name) not in found:
                found.append(int(path.name))
        return found

    def kill(self, whom: str, draw: random.Random) -> bool:
        """Kill "launcher", a "rank" or "all"; whether all processes were gone within GRACE seconds."""
        found = self.processes()
        chosen = {"launcher": found[:1], "rank": [draw.choice(found[1:] or found)], "all": found}[whom]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GRACE
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)
        orphans = self.processes()
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.said.close()
        return not orphans


class Outcome:
    """Where a run stands, read from its files."""

    def __init__(self, folder: Path):
        (self.run,) = [path.parent for path in folder.glob("*/checkpoints")] or [folder / "none"]
        self.checkpoints = all_checkpoints(self.run) if self.run.is_dir() else []
        self.newest = max((int(path.name[5:]) for path in self.checkpoints), default=0)

    def torn(self) -> int:
        return sum(damage(path) is not None for path in self.checkpoints)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state of the newest checkpoint."""
        path = self.checkpoints[0]
        state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in stored_shapes(path).items()}
        read_tensors(path, state, no_dist=True)
        return state

    def losses(self) -> dict[int, float]:
        rows = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["metric/train_loss"] for row in rows if "metric/train_loss" in row}

    def files(self) -> set[str]:
        """Names below the run folder, without the numbers of leases, patches and steps (a stopped rank saves, too)."""
        found = {str(path.relative_to(self.run)) for path in self.run.rglob("*")}
        return {re.sub(r"(lease|patch|step)-\w+", r"\1", name) for name in found}


class Undisturbed:
    """What a run comes to when nobody hurts it, and how many seconds it takes."""

    def __init__(self, data: Path, folder: Path, ranks: int):
        begin = time.monotonic()
        code = Start(data, folder, ranks).process.wait()
        self.seconds = time.monotonic() - begin
        assert code == 0, folder.with_suffix(".txt").read_text()
        outcome = Outcome(folder)
        self.tensors, self.losses, self.files = outcome.tensors(), outcome.losses(), outcome.files()

    def differs(self, outcome: Outcome) -> bool:
        tensors = outcome.tensors()
        same = tensors.keys() == self.tensors.keys() and all(
            torch.equal(t, self.tensors[n]) for n, t in tensors.items()
        )
        return not same or outcome.losses() != self.losses


class Kills:
    """The counts of all runs, and how many kills are still to come."""

    def __init__(self, wanted: int):
        self.lock, self.left = threading.Lock(), wanted
        self.counts: Counter[str] = Counter({"kills": 0, **dict.fromkeys(COUNTS, 0)})
        self.bar = tqdm(total=wanted, unit="kill")

    def more(self) -> bool:
        with self.lock:
            return self.left > 0

    def count(self, **found: int) -> None:
        with self.lock:
            for name, n in found.items():
                self.counts[name.replace("_", " ")] += n
            if killed := found.get("kills", 0):
                self.left -= killed
                self.bar.update(killed)


def disturbed(number: int, data: Path, folder: Path, ranks: int, normal: Undisturbed, kills: Kills) -> None:
    """One run, killed until it comes to its end; the folder stays where anything was wrong."""
    draw, before, wrong = random.Random(number), 0, False

    def found(**counts: int) -> None:
        nonlocal wrong
        wrong = wrong or any(counts.values())
        kills.count(**counts)

    while True:
        start = Start(data, folder, ranks)
        try:
            code = start.process.wait(draw.uniform(0, normal.seconds) if kills.more() else None)
        except subprocess.TimeoutExpired:
            whom = draw.choice(("launcher", "rank", "all")) if ranks > 1 else "all"
            kills.count(kills=1)
            kills.count(**{f"of {whom}": 1})
            found(orphans=int(not start.kill(whom, draw)))
            outcome = Outcome(folder)
            found(lost=int(outcome.newest < before), torn=outcome.torn())
            before = outcome.newest
            continue
        if code == 0:
            break
        found(refused=1)
        if kills.counts["refused"] > 20:
            return
    outcome = Outcome(folder)
    lost = int(outcome.newest < STEPS or outcome.losses().keys() != normal.losses.keys())
    found(lost=lost, torn=outcome.torn(), left_over=len(outcome.files() - normal.files))
    found(different=int(normal.differs(outcome)))
    kills.count(runs=1)
    if not wrong:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(command_of(main))
