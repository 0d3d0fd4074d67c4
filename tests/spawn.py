"""Run a function in another process, or in several with gloo and the environment torchrun would give them."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tqdm import tqdm

from lit_gpt.train import reporter

ROOT = Path(__file__).parents[1]
STACKS_AFTER = 300.0  # seconds: long after every call here has ended, and before gloo gives up waiting


def run_distributed(
    fn: Callable[..., Any], world_size: int, *args: Any, nodes: int = 1, gpu: bool = False
) -> list[Any]:
    """fn(*args) on every rank, with the start of torchrun; what each rank returned, by rank.

    fn must be importable (top level of a test file). An exception on any rank fails the call
    with that rank's traceback, and with the stacks of ranks that crashed or hung.
    """
    store = meeting_place()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (fn, world_size, nodes, store.port, gpu, folder, args)
        try:
            mp.start_processes(_process, arguments, nprocs=world_size, start_method="forkserver")
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            stacks = {file.name: file.read_text() for file in Path(folder).glob("*.stacks")}
            found = "".join(f"\n\n{name}\n{text}" for name, text in sorted(stacks.items()) if text)
            raise AssertionError(f"{error}{found}") from error
        return [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(world_size)]


def torchrun(script: Path, arguments: list[str]) -> tuple[str, str]:
    """(stdout, stderr) of torchrun with two processes of a script, with gloo on the CPU and a thread each.

    torchrun itself is a fork of this process: its import of torch takes longer than all else that it does.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]

        def launch() -> int:
            from torch.distributed.run import main  # which processes that only compute do not need

            signal.alarm(300)
            for number, path in enumerate(said, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
            main(["--standalone", "--nproc_per_node", "2", str(script), *arguments])
            return 0

        ended(forked(launch))
        stdout, stderr = (path.read_text() for path in said)
    return stdout, stderr


def meeting_place() -> dist.TCPStore:
    """Where processes find one another, on a port that is taken already, as with torchrun; it ends with the object.

    A free port that is looked up, and taken by rank 0 a moment later, may be another process's by then.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


AT_MEETING_PLACE = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": True}


def start(fn: Callable[..., Any], *args: Any) -> multiprocessing.process.BaseProcess:
    """A process that runs fn(*args), started; fn as for run_distributed."""
    process = forks().Process(target=fn, args=args)
    process.start()
    return process


def forked(work: Callable[[], int]) -> int:
    """The id of a fork of this process that ends with what work() returns; it never goes on into pytest."""
    if pid := os.fork():
        return pid
    try:
        tqdm.set_lock(threading.RLock())  # the one before is everyone's: killed at a print, this would keep it for ever
        os._exit(work())
    finally:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(99)


def ended(pid: int) -> int:
    """The exit code of a fork, once it has ended; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forks() -> Any:
    """What makes processes, with the imports of conftest.py done."""
    return multiprocessing.get_context("forkserver")


def _process(rank: int, fn: Callable[..., Any], world_size: int, nodes: int, port: int, gpu: bool, folder: str, args):
    assert "lit_gpt.train.loop" in sys.modules, "the server of forks was started without the imports of conftest.py"
    local = world_size // nodes
    values = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
    values |= {"GROUP_RANK": rank // local, "MASTER_PORT": port, **AT_MEETING_PLACE}
    os.environ.update({k: str(v) for k, v in values.items()})
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    reporter.draw_loss_curve = lambda *_: None  # as long as the rest; test_resume.py and torchrun draw it
    gc.disable()  # a short life; and a search for garbage would copy the server's memory
    stacks = Path(folder, f"{rank}.stacks").open("w")  # noqa: SIM115 (a crash at the very end is written down, too)
    faulthandler.enable(stacks)
    faulthandler.dump_traceback_later(STACKS_AFTER, file=stacks)
    torch.save(fn(*args), Path(folder, f"{rank}.pt"))
    if dist.is_initialized():
        dist.destroy_process_group()
