"""Write checkpoints: staged at once, written in the background, published as a whole."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.optim import Optimizer

from lit_gpt.checkpoint.layout import (
    CHECKPOINT_VERSION,
    COMPLETE,
    META,
    TMP,
    Where,
    discard,
    list_checkpoints,
    remove_leftovers,
    step_folder,
)
from lit_gpt.checkpoint.staging import Staging
from lit_gpt.checkpoint.state import Tensors, flatten
from lit_gpt.errors import UserError

# DCP says this at each save and load of a run without a process group, where it is meant so.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpointer:
    """Saves checkpoints of one run and keeps the ones asked for.

    folder: <run>/checkpoints, on a file system that all ranks see. keep_last: newest checkpoints
    that stay. keep_every: those at multiples of this many steps stay for good, 0 for none.
    async_save: write in the background.
    Every rank makes one, at the same point, and calls its methods at the same points.
    Raises UserError for keep_last < 1.
    """

    def __init__(
        self, folder: Path, runtime: Where, *, keep_last: int, keep_every: int = 0, async_save: bool = True
    ) -> None:
        if keep_last < 1:
            raise UserError(f"--keep_last {keep_last} would keep no checkpoint. Give 1 or more.")
        self.folder = Path(folder)
        self.is_main = runtime.is_main
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.async_save = async_save
        self.staging = Staging()
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        # Its own group: the background thread must not mix with the collectives of training.
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if runtime.world_size > 1 else None
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        runtime.barrier()

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, meta: dict[str, Any]) -> None:
        """Save after `step` optimizer steps.

        meta: JSON values, such as tokens, plan, model_config, data_state. Returns when all tensors
        are copied to host memory; first waits for the save before, if that is still being
        written. Raises the UserError of that one if it failed, and with async_save=False its own.
        """
        self.wait()
        staged = self.staging.copy(flatten(model, optimizer))
        text = json.dumps({**meta, "version": CHECKPOINT_VERSION, "step": step}, indent=1)
        self.thread = threading.Thread(target=self._run, args=(step, staged, text), name="checkpoint")
        self.thread.start()
        if not self.async_save:
            self.wait()

    def wait(self) -> None:
        """Until the last save is published. Raises UserError, on all ranks, if it failed."""
        if self.thread is not None:
            self.thread.join()
        self.thread, error, self.error = None, self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, and release the process group. The Checkpointer cannot be used afterwards."""
        self.wait()
        if self.group is not None:
            dist.destroy_process_group(self.group)

    def _run(self, step: int, staged: Tensors, meta: str) -> None:
        final = step_folder(self.folder, step)
        tmp = final.with_name(TMP + final.name)
        try:
            self._together(lambda: self._write(staged, tmp))
            self._together(lambda: self._publish(tmp, final, meta))
        except Exception as error:
            self.error = UserError(
                f"writing checkpoint {final} failed: {error} The checkpoints before it are untouched. "
                "Make room or choose another --out_dir, then continue with --resume auto."
            )
            self.error.__cause__ = error
            if self.is_main:
                shutil.rmtree(tmp, ignore_errors=True)

    def _together(self, work: Any) -> None:
        """Do `work` on every rank; raise on all of them if it failed on one."""
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        failed = torch.tensor(int(failure is not None))
        if self.group is not None:
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.group)
        if failed:
            raise failure or RuntimeError("another rank could not write its part.")

    def _write(self, staged: Tensors, tmp: Path) -> None:
        writer = dcp.FileSystemWriter(tmp, sync_files=True)
        dcp.save(staged, storage_writer=writer, process_group=self.group, no_dist=self.group is None)

    def _publish(self, tmp: Path, final: Path, meta: str) -> None:
        if not self.is_main:
            return
        _write_text(tmp / META, meta)
        _sync_folder(tmp)
        if final.exists():  # the same step again, from a run that went back
            discard(final)
        os.replace(tmp, final)
        _write_text(final / COMPLETE, str(time.time_ns()))
        _sync_folder(final)
        _sync_folder(final.parent)
        self._retain()

    def _retain(self) -> None:
        for path in list_checkpoints(self.folder)[: -self.keep_last]:
            step = int(path.name.removeprefix("step-"))
            if not (self.keep_every and step % self.keep_every == 0):
                discard(path)


def _write_text(path: Path, text: str) -> None:
    """Whole and on the disk, or not there."""
    tmp = path.with_name(TMP + path.name)
    with tmp.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
