"""A stand-in for pretrain.py, which starts at once: it owns its run folder by the same lease, and resumes.

Each step is a line of <run>/steps, so that a test sees what was lost or done twice. Options: --steps to do, --fails
starts that end with exit code 1 first, --pause seconds per step, --loss at the end (or
--base_hps.eta0), --losses to log, one per step, --code to end with, --stale seconds until a lease counts as left,
--waits for a file before it ends.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from lit_gpt.errors import NotOwner
from lit_gpt.train import lease


def main() -> int:
    options = {"steps": "3", "fails": "0", "pause": "0", "loss": "1", "losses": "", "code": "0"}
    options |= {key[2:]: value for key, value in zip(sys.argv[1::2], sys.argv[2::2])}
    if "stale" in options:
        lease.STALE_AFTER, lease.RENEW_EVERY = float(options["stale"]), float(options["stale"]) / 2
    run = Path(options["out_dir"]) / "run"
    run.mkdir(parents=True, exist_ok=True)
    try:
        owned = lease.take_lease(run)
    except NotOwner:
        return 6
    with (run / "calls").open("a") as calls:
        print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[1:], file=calls)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    try:
        return work(run, options, stopped)
    finally:
        owned.close()


def work(run: Path, options: dict[str, str], stopped: list[int]) -> int:
    """The steps that are left; the exit code."""
    losses = options["losses"].split(",")
    if len((run / "calls").read_text().splitlines()) <= int(options["fails"]):
        return 1
    done = len((run / "steps").read_text().splitlines()) if (run / "steps").exists() else 0
    for step in range(done + 1, int(options["steps"]) + 1):
        time.sleep(float(options["pause"]))
        with (run / "steps").open("a") as steps:
            print(step, file=steps)
        if step <= len(losses) and losses[0]:
            with (run / "metrics.jsonl").open("a") as metrics:
                loss = None if losses[step - 1] == "nan" else float(losses[step - 1])
                metrics.write(json.dumps({"step": step, "total_tokens": step, "metric/train_loss": loss}) + "\n")
        if stopped:
            return 75
    while "waits" in options and not Path(options["waits"]).exists():
        time.sleep(0.02)
        if stopped:
            return 75
    if "base_hps.eta0" in options:  # 0.01 is best
        options["loss"] = str(1 + math.log2(float(options["base_hps.eta0"]) / 0.01) ** 2)
    values = {"finished": True, "step": int(options["steps"]), "metric/val_loss@1x": float(options["loss"])}
    if options["code"] == "0":
        (run / "summary.json").write_text(json.dumps(values))
    return int(options["code"])


if __name__ == "__main__":
    sys.exit(main())
