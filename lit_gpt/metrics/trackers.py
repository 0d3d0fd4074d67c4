"""Experiment trackers, each an optional package that is imported only when asked for, and run in the background."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.metrics.background import Background, Texts, Tracker
from lit_gpt.utils.files import write_text

WANDB_STEP = "trainer/global_step"  # the x axis Lightning's logger uses, so that old dashboards still fit
# What mlflow-skinny lacks to keep runs on this machine: mlflow (3.17) does so in a database, and refuses folders, see
# https://mlflow.org/docs/latest/self-hosting/migrate-from-file-store.
LOCAL_MLFLOW = ("sqlalchemy", "alembic")


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told once. config: JSON types only, the Plan under "plan". resume_step: 0 for a new run.

    entity: team or user that the run belongs to, None is the login's. group, tags: to find the run by.
    """

    folder: Path
    run_name: str
    project: str
    config: dict[str, Any]
    resume_step: int
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


def _require(module: str, logger: str) -> ModuleType:
    # Read when mlflow is imported; without it mlflow reports its use to its makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise UserError(
            f"The {logger} logger was asked for, but it cannot be imported ({missing}). "
            f"Type: pip install 'scalelab[log]', or leave {logger} out of --loggers."
        ) from missing


def check_installed(names: Iterable[str]) -> None:
    """Raise UserError when a tracker among `names` lacks a package."""
    for name in names:
        if name in CLASSES:
            _require(name, name)
    if "mlflow" in names and _mlflow_is_local():
        for package in LOCAL_MLFLOW:
            _require(package, "mlflow")


def _mlflow_is_local() -> bool:
    return not os.environ.get("MLFLOW_TRACKING_URI")


class _RunId:
    """The id that a tracker gave a run, kept in the run folder so that a resume continues that run (departure D73).

    known: the id of the run to continue, None for a new run.
    """

    def __init__(self, info: RunInfo, logger: str):
        self._path = info.folder / f"{logger}_run_id.txt"
        resumes = info.resume_step > 0 and self._path.exists()
        self.known = self._path.read_text().strip() if resumes else None

    def save(self, run_id: str) -> None:
        write_text(self._path, run_id + "\n")


class TensorBoard:
    """Writes event files into the folder `tensorboard` of the run folder."""

    def __init__(self, info: RunInfo):
        _require("tensorboard", "tensorboard")
        module = _require("torch.utils.tensorboard", "tensorboard")
        # purge_step hides what an interrupted run had written after the checkpoint
        self._writer = module.SummaryWriter(
            str(info.folder / "tensorboard"), purge_step=info.resume_step + 1 if info.resume_step else 0
        )
        self._writer.add_text("config", f"```\n{json.dumps(info.config, indent=2)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def texts(self, rows: Texts, step: int) -> None:
        for i, (prompt, text) in enumerate(rows):
            self._writer.add_text(f"samples/{i}", f"```\n{prompt}{text}\n```", step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """WANDB_MODE=offline and the other WANDB_ variables are honoured by the package itself.

    Without a login nothing asks for one: the run is kept in the run folder, to be sent later.
    """

    def __init__(self, info: RunInfo):
        wandb = _require("wandb", "wandb")
        run_id = _RunId(info, "wandb")
        offline = not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False)
        if offline:
            where = info.folder / "wandb"
            print(
                f"note: there is no wandb login, so this run is kept in {where}. To send it: wandb login, then "
                f"wandb sync {where}/offline-run-*",
                file=sys.stderr,
            )
        self._run = wandb.init(
            project=info.project,
            entity=info.entity,
            name=info.run_name,
            group=info.group,
            tags=info.tags or None,
            config=info.config,
            mode="offline" if offline else None,
            dir=str(info.folder),
            id=run_id.known,
            resume="allow",
        )
        run_id.save(self._run.id)
        # A step as a metric, not wandb's own counter: that one refuses to go back after a resume.
        self._run.define_metric(WANDB_STEP)
        self._run.define_metric("*", step_metric=WANDB_STEP, step_sync=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, WANDB_STEP: step})

    def texts(self, rows: Texts, step: int) -> None:
        table = _require("wandb", "wandb").Table(columns=["prompt", "text"], data=[list(row) for row in rows])
        self._run.log({"samples": table, WANDB_STEP: step})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Writes to the server or database named by MLFLOW_TRACKING_URI.

    Without that, to mlflow's own default, ./mlflow.db, which mlflow-skinny opens with LOCAL_MLFLOW only.
    """

    def __init__(self, info: RunInfo):
        self._mlflow = _require("mlflow", "mlflow")
        run_id = _RunId(info, "mlflow")
        self._mlflow.set_experiment(info.project)
        tags = dict.fromkeys(info.tags, "true") | ({"group": info.group} if info.group else {})
        run = self._mlflow.start_run(run_id=run_id.known, run_name=info.run_name, tags=tags)
        run_id.save(run.info.run_id)
        if not run_id.known:
            self._mlflow.log_params(dict(_flat(info.config)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        # names may not hold "@", which validation keys do
        named = {key.replace("@", "_at_"): value for key, value in values.items()}
        self._mlflow.log_metrics(named, step=step, synchronous=False)

    def texts(self, rows: Texts, step: int) -> None:
        text = "\n\n".join(f"{prompt}{text}" for prompt, text in rows)
        self._mlflow.log_text(text, f"samples/step-{step:06d}.txt")

    def close(self) -> None:
        self._mlflow.end_run()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name with dots, value as text) of every value in nested mappings, which mlflow's parameters cannot be."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)[:500]  # the shortest limit among mlflow's stores


def _in_background(name: str, info: RunInfo) -> Tracker:
    check_installed([name])  # here, where it is an error
    return Background(name, lambda: CLASSES[name](info))


CLASSES: dict[str, Callable[[RunInfo], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
TRACKERS = {name: partial(_in_background, name) for name in CLASSES}
