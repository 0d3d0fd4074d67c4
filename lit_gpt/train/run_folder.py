"""The run folder: an archive of what was asked, what was planned, and what happened.

    config.yaml       resolved options            metrics.jsonl   every logged number
    plan.json         the Plan                    loss_curve.png  the curves
    model.json        the ModelConfig             summary.json    how it ended
    numerics.json     precisions                  checkpoints/    see lit_gpt/checkpoint
    environment.json  machine, packages, git      tokenizer/      see lit_gpt/data/kept_tokenizer.py

A folder belongs to one Plan, one model and one order of data. A run that differs in any
of them is refused with the difference, whether it resumes or starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_gpt.data.kept_tokenizer import KeptTokenizer, describe_tokenizer, keep_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.scaling.plan import difference
from lit_gpt.train.setup import Setup, world_size
from lit_gpt.utils.files import read_object, write_text

IDENTITY = ("plan", "model", "numerics")  # each a JSON file
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"


def identity(setup: Setup) -> dict[str, Any]:
    """What must not change within a run folder."""
    run = setup.run
    numerics = {"precision": run.precision or "device default", "residual_precision": run.residual_precision}
    plan = setup.plan.to_dict()
    del plan["memory"]  # a run may go on with other GPUs, and others of them
    return json.loads(json.dumps({"plan": plan, "model": setup.model.to_dict(), "numerics": numerics}))


def claim(setup: Setup, checkpoint: dict[str, Any] | None) -> None:
    """Check that the folder is this run's or nobody's, and the checkpoint (its meta) too; touches nothing.

    Raises UserError with the difference when either is another run's, and when the folder
    holds this run with progress that starting over would lose.
    """
    folder = setup.folder
    if checkpoint is not None:
        _same_run({part: checkpoint[part] for part in IDENTITY}, setup, "the checkpoint")
    blocking = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if blocking:
        raise UserError(f"The run folder {folder} cannot be made: {blocking} is a file. Choose another --out_dir.")
    if not (folder / "plan.json").exists():
        return
    old = {part: read_object(folder / f"{part}.json") for part in IDENTITY}
    old["plan"].pop("memory", None)
    _same_run(old, setup, str(folder))
    if checkpoint is None and any((folder / "checkpoints").glob("step-*")):
        raise UserError(
            f"{folder} already holds this run with checkpoints. Add --resume auto to continue it, "
            "or remove the folder (or add a label to --train_name) to start again."
        )


def _same_run(old: dict[str, Any], setup: Setup, where: str) -> None:
    changed = difference(old, identity(setup))
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"This is not the run that {where} holds. What differs (there -> here):\n{listed}\n"
            "Use the old options to continue it; for a new run add a label to --train_name, or another --out_dir. "
            "To start a new run from its weights, use --init_from."
        )


def create(setup: Setup) -> KeptTokenizer | None:
    """Write the archive's fixed part; the tokenizer that it keeps. Only the main process calls this.

    Raises UserError where nothing can be written.
    """
    folder = setup.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be made ({error}). Choose another --out_dir.") from error
    for part, values in {**identity(setup), "plan": setup.plan.to_dict()}.items():
        write_text(folder / f"{part}.json", json.dumps(values, indent=2) + "\n")
    write_text(folder / CONFIG, yaml.safe_dump(dataclasses.asdict(setup.run), sort_keys=False))
    write_text(folder / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
    run = setup.run
    tokenizer = describe_tokenizer(run.train_data_dir, run.data_mixture, run.eos_token_id)
    return keep_tokenizer(tokenizer, folder) if tokenizer else None


def environment() -> dict[str, Any]:
    """Command, working directory, machine, library versions and the state of the source tree."""
    return {
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": world_size(),
        "cpu_count": os.cpu_count(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit, and whether tracked files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": ask("diff", "HEAD", "--stat").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None
