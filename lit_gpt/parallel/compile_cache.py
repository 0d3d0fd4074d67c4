"""What torch.compile and Triton have made, kept in a folder that can be copied to another machine (--compile_cache).

The folder has a part for each kind of machine: compilers' versions and the GPU, all of which the compilers make part of
their keys, too. Beside the files of a part, SUMS has their checksums, since a compiler may believe what it finds. It is
code that will be executed: use folders of people whom you trust.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lit_gpt.errors import UserError
from lit_gpt.utils.files import digest, read_object_if_any, write_text

SUMS = "sums.json"
TRANSIENT = re.compile(r"locks|.*\.lock|.*\.tmp|tmp\..*")  # of inductor and of Triton


class CompileCache:
    """The part of a folder that is for the kind of machine that `device` is; without a folder it does nothing.

    Every process of a node uses it, and the first one of the node checks it before, and sums it up afterwards.
    """

    def __init__(self, folder: str | None, device: torch.device):
        self.place = Path(folder).resolve() / kind(device) if folder else None
        self.checks = os.environ.get("LOCAL_RANK", "0") == "0"

    def open(self, barrier: Callable[[], None]) -> None:
        """Check it, and have the compilers read and write there from now on; says what is wrong. Collective."""
        if self.place is None:
            return
        said = self.check()
        barrier()  # until what is damaged is gone
        said = said or self.use()
        if said:
            print(f"note         {said}", file=sys.stderr)

    def check(self) -> str:
        """A sentence about a folder that is damaged, which is emptied, or of other machines; "" where all is well."""
        if self.place is None or not self.checks:
            return ""
        if changed := self._changed():
            shutil.rmtree(self.place, ignore_errors=True)
            return f"--compile_cache: {changed}, so all of it was removed and is compiled again"
        others = sorted(p.name for p in self.place.parent.glob("*") if (p / SUMS).is_file() and p != self.place)
        if others and not self.place.is_dir():
            return (
                f"--compile_cache: {self.place.parent} has nothing for {self.place.name} yet, only {', '.join(others)}"
            )
        return ""

    def use(self) -> str:
        """Name the place to the compilers; a sentence where they cannot write there."""
        if self.place is None:
            return ""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            if not os.access(self.place, os.W_OK):
                raise PermissionError("it is read-only")
        except OSError as error:
            return f"--compile_cache: {self.place} cannot be used ({error}); compilers keep to their own folders"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.place / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(self.place / "triton")
        # Triton's choice among configurations too, for kernels of libraries: https://triton-lang.org, triton.autotune.
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
        return ""

    def keep(self) -> None:
        """Sum up what is there. For a moment at which no process of this run compiles; never fails a run."""
        if self.place is not None and self.checks and self.place.is_dir():
            try:
                sums = {name: digest(path) for name, path in self._files()}
                write_text(self.place / SUMS, json.dumps(sums, indent=0))
            except (OSError, UserError):  # the disk is full, or another run found damage and removes what is here
                (self.place / SUMS).unlink(missing_ok=True)

    def _changed(self) -> str:
        """What is wrong with files that were summed up, or "". Others are younger: a run that was killed left them."""
        assert self.place is not None
        try:
            sums = read_object_if_any(self.place / SUMS)
        except UserError:
            return f"{self.place / SUMS} cannot be read"
        found = dict(self._files())
        wrong = [name for name, known in sums.items() if name not in found or digest(found[name]) != known]
        return f"{len(wrong)} of {len(sums)} files in {self.place} are not as they were written" if wrong else ""

    def _files(self) -> Iterator[tuple[str, Path]]:
        """(name, path) of every file but sums, locks, and those that are being written."""
        assert self.place is not None
        for path in sorted(self.place.rglob("*")):
            inside = path.relative_to(self.place)
            if path.is_file() and path.name != SUMS and not any(TRANSIENT.fullmatch(part) for part in inside.parts):
                yield str(inside), path


def kind(device: torch.device) -> str:
    """A name for all machines on which the same compiled code runs."""
    gpu = f"cuda-{torch.version.cuda}-{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    name = f"torch-{torch.__version__}-{gpu}-{sys.implementation.cache_tag}-{platform.machine()}"
    return re.sub(r"[^\w.+-]+", "-", name)


def start_compilers() -> None:
    """Start the processes that compile kernels, which import torch for seconds, while weights are drawn.

    torch itself starts them at the first kernel: maybe_warm_pool is what torch/_dynamo/backends/inductor.py calls.
    """
    from torch._inductor import async_compile  # a second of imports, for those who compile

    if warm := getattr(async_compile, "maybe_warm_pool", None):  # not public
        warm()
