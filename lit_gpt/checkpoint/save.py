"""Write checkpoints: staged at once, written in the background, published as a whole.

What `Checkpointer.save` does, in this order:

1. Every rank copies its tensors to host memory, and training goes on (staging.py).
2. A thread of every rank writes them to .tmp-step-<n> with torch's distributed checkpoint (DCP), and syncs them.
3. When all ranks have written, the main rank adds meta.json, SHA256SUMS and at last COMPLETE, and syncs the folder.
4. It renames the folder to step-<n>, so no reader ever sees half a checkpoint, and deletes those that nothing keeps
   (retention.py).

A crash before step 4 leaves a .tmp folder, which the next start deletes; the checkpoints before it are untouched. A
failure on one rank is told to all of them, so that all agree on whether there is a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_gpt.checkpoint.contents import sums_text
from lit_gpt.checkpoint.layout import (
    CHECKPOINT_VERSION,
    COMPLETE,
    INDEX,
    META,
    SUMS,
    TMP,
    Where,
    discard,
    everyones,
    list_checkpoints,
    next_number,
    say,
    seal,
    step_folder,
    take_place,
    tidy,
)
from lit_gpt.checkpoint.retention import improves, why_kept
from lit_gpt.checkpoint.staging import Staging
from lit_gpt.checkpoint.state import NONE, Tensors, flatten
from lit_gpt.checkpoint.untrusted import DATA_FILE, reason
from lit_gpt.checkpoint.writing import Writer, write_text
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.utils.files import digest, kind_of, sync

# DCP says this at each save and load of a run without a process group, where it is meant so.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
T = TypeVar("T")


class Checkpointer:
    """Saves checkpoints of one run and keeps the ones asked for.

    folder: <run>/checkpoints, on a file system that all ranks see. keep_last, keep_every, keep_best: which checkpoints
    stay, see retention.py. async_save: write in the background. owned: called on the main rank right before a
    checkpoint gets its name; raises where the run folder is another process's by then, or what was logged is not on the
    disk.
    A save that fails is said on stderr at once, and the next one tries again: `failures` counts
    them, and `wait` says whether the last one was published.
    Every rank makes one, at the same point, and calls its methods at the same points.
    Raises UserError for keep_last < 0, and for a folder that cannot be written: NotWritten where the disk is read-only.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Where,
        *,
        keep_last: int,
        keep_every: int = 0,
        keep_best: bool = False,
        async_save: bool = True,
        owned: Callable[[], None] = lambda: None,
    ) -> None:
        if keep_last < 0:
            raise UserError(f"--keep_last is {keep_last}; it must be 0 or more.")
        self.folder = Path(folder)
        self.is_main = runtime.is_main
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.keep_best = keep_best
        self.async_save = async_save
        self.owned = owned
        self.staging = Staging()
        self.thread: threading.Thread | None = None
        self.saved, self.failures, self.newest = True, 0, "none: nothing is saved so far"
        # Its own group: the background thread must not mix with the collectives of training.
        self.ranks = runtime.world_size
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if self.ranks > 1 else None
        if self.is_main:
            self._open()
        runtime.barrier()

    def _open(self) -> None:
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(
                f"{self.folder} is a link to nothing that is there, so checkpoints are neither found nor kept. Bring "
                "back what it leads to, or remove the link."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tidy(self.folder)
            self.newest = next((path.name for path in reversed(list_checkpoints(self.folder))), self.newest)
        except OSError as error:
            said = f"{self.folder} cannot keep checkpoints ({error}). Choose another --out_dir."
            raise kind_of(error)(said) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            kind = NotWritten if os.statvfs(self.folder).f_flag & os.ST_RDONLY else UserError  # the disk, or its mode
            raise kind(f"{self.folder} cannot be written, so no checkpoint can be saved. Make it writable.")

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        meta: dict[str, Any],
        averages: Mapping[str, torch.Tensor] = NONE,
    ) -> None:
        """Save after `step` optimizer steps.

        meta: JSON values, such as tokens, plan, model_config, data_state. averages: see state.flatten. Returns when
        all tensors are copied to host memory; first waits for the save before, if that is still being written.
        """
        self.wait()
        staged = self.staging.copy(flatten(model, optimizer, averages))
        text = json.dumps({**meta, "version": CHECKPOINT_VERSION, "step": step}, indent=1)
        self.saved = False
        self.thread = threading.Thread(target=self._write_and_publish, args=(step, staged, text), name="checkpoint")
        self.thread.start()
        if not self.async_save:
            self.wait()

    def wait(self) -> bool:
        """Until the last save has ended; whether it was published, the same on all ranks."""
        if self.thread is not None:
            self.thread.join()
        self.thread = None
        return self.saved

    def improves(self, values: dict[str, float]) -> bool:
        """Whether --keep_best asks to save what was measured just now, as it is better than every checkpoint here.

        values: metrics of a validation. Waits for the last save, which may be the best. The same on all ranks.
        """
        if not self.keep_best:
            return False
        self.wait()
        better = self.is_main and improves(values, list_checkpoints(self.folder))
        return everyones(better, self.ranks, self.group)[0]

    def release(self) -> None:
        """For a run that has finished and whose summary is on the disk: delete what its last save was to delete, if it
        was killed before it could; with keep_last 0 the newest one goes, too."""
        if self.is_main:
            self.owned()
            self._retain(finished=True)

    def close(self) -> None:
        """Wait, and release the process group. The Checkpointer cannot be used afterwards."""
        self.wait()
        if self.group is not None:
            dist.destroy_process_group(self.group)

    def _write_and_publish(self, step: int, staged: Tensors, meta: str) -> None:
        """The work of the thread. A failure to write is counted and said, and does not end training."""
        final = step_folder(self.folder, step)
        tmp = final.with_name(TMP + final.name)
        try:
            of_ranks = self._together(lambda: self._write(staged, tmp))
            sums = {name: value for of_rank in of_ranks for name, value in of_rank.items()}
            self._together(lambda: self._publish(tmp, final, meta, sums))
            self.saved = True
        except Exception as error:
            self.failures += 1
            if self.is_main:
                shutil.rmtree(tmp, ignore_errors=True)  # its space may be what the next save lacks
                self._warn(step, error)
        else:
            self._retain()

    def _warn(self, step: int, error: Exception) -> None:
        say(
            f"warning: NOT SAVED: the checkpoint of step {step:,} could not be written to {self.folder} ({error}). "
            f"The newest is {self.newest}; the next save tries again."
        )

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Do `work` on every rank; what each of them returned, by rank.

        Raises OSError on all of them if it failed on one: a rank that went on alone would wait for ever.
        """
        mine, failure = None, None
        try:
            mine = work()
        except (Exception, CheckpointException) as error:  # CheckpointException is a BaseException only
            failure = reason(error)
        everyone = everyones((mine, failure), self.ranks, self.group)
        failed = next(((rank, why) for rank, (_, why) in enumerate(everyone) if why), None)
        if failed:
            rank, why = failed
            raise OSError(why if self.ranks == 1 or why.startswith("rank ") else f"rank {rank}: {why}")
        return [cast(T, value) for value, _ in everyone]

    def _write(self, staged: Tensors, tmp: Path) -> dict[str, str]:
        """Write this rank's tensors into `tmp`; returns name -> SHA-256 of the data files that it wrote."""
        local = [t.to_local() if isinstance(t, DTensor) else t for t in staged.values()]
        writer = Writer(tmp, sum(t.nbytes for t in local))
        dcp.save(staged, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
        return {name: value for name, value in writer.files.sums.items() if DATA_FILE.fullmatch(name)}

    def _publish(self, tmp: Path, final: Path, meta: str, sums: dict[str, str]) -> None:
        """Complete the folder `tmp` and give it its name. sums: name -> SHA-256 of the data files of all ranks."""
        if not self.is_main:
            return
        write_text(tmp / META, meta)
        text = sums_text(sums | {name: digest(tmp / name) for name in (INDEX, META)})
        write_text(tmp / SUMS, text)
        write_text(tmp / COMPLETE, seal(next_number(self.folder), text))  # last: it vouches for all the others
        sync(tmp)  # contents first: a rename that outlives a power cut must not name an empty folder
        self.owned()
        take_place(tmp, final)
        sync(final.parent)
        self.newest = final.name

    def _retain(self, finished: bool = False) -> None:
        """Delete the checkpoints that nothing keeps, on the main rank."""
        if not self.is_main:
            return
        reasons = why_kept(list_checkpoints(self.folder), self.keep_last, self.keep_every, self.keep_best, finished)
        for path, why in reasons.items():
            if not why:
                discard(path)
