"""Processes to be hurt: pretrain.py on several ranks, each with its output in a file, on one host or on two."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tiny_run
import torch
from spawn import AT_MEETING_PLACE, meeting_place, start

from lit_gpt.train import reporter

CLONE_NEWNET, CLONE_NEWUTS = 0x40000000, 0x04000000  # sched.h
_names = itertools.count()


@dataclass(frozen=True)
class Host:
    """A network namespace; None for the one of this process."""

    namespace: str | None = None
    address: str = "127.0.0.1"
    interface: str = "lo"


@dataclass(frozen=True)
class Rank:
    """A process, where its output is, and where it meets others, which must be there as long as they are."""

    process: BaseProcess
    file: Path
    place: Any = None

    @property
    def said(self) -> str:
        return self.file.read_text()

    def ends(self, seconds: float = 60) -> int | None:
        """Its exit code; None if it is still there after a time."""
        self.process.join(seconds)
        return self.process.exitcode


def run(data: Path, out: Path, **options: Any) -> int:
    """As tiny_run.run, in this process, as its ranks run: one thread, and no figure."""
    threads, draw = torch.get_num_threads(), reporter.draw_loss_curve
    torch.set_num_threads(1)
    reporter.draw_loss_curve = lambda *_: None
    try:
        return tiny_run.run(data, out, **options)
    finally:
        torch.set_num_threads(threads)
        reporter.draw_loss_curve = draw


def start_alone(folder: Path, fn: Callable[..., Any], *args: Any) -> Rank:
    """fn(*args) in a process without a launcher; what it returns is the exit code."""
    file = folder / f"said-{next(_names)}.txt"
    return Rank(start(_run, file, {}, None, fn, args), file)


def start_ranks(folder: Path, world: int, fn: Callable[..., Any], *args: Any, hosts: tuple[Host, ...] = (Host(),)):
    """fn(*args) on `world` ranks spread evenly over the hosts, with the environment of torchrun."""
    store = meeting_place()
    local, ranks = world // len(hosts), []
    for rank in range(world):
        host = hosts[rank // local]
        values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
        values |= {"GROUP_RANK": rank // local, "MASTER_PORT": store.port, "GLOO_SOCKET_IFNAME": host.interface}
        # In a namespace rank 0 makes the place: every port is free there.
        values |= {"MASTER_ADDR": hosts[0].address} if hosts[0].namespace else AT_MEETING_PLACE
        file = folder / f"said-{next(_names)}.txt"
        ranks.append(Rank(start(_run, file, values, host.namespace, fn, args), file, store))
    return ranks


def _run(file: Path, values: dict[str, Any], namespace: str | None, fn: Callable[..., Any], args: Any) -> None:
    if namespace:
        handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setns(handle, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        assert libc.unshare(CLONE_NEWUTS) == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(namespace)
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    os.environ.update({k: str(v) for k, v in values.items()}, CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background, or under nohup, ignores them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    reporter.draw_loss_curve = lambda *_: None
    code = fn(*args)
    sys.stdout.flush()
    os._exit(code)


def freeze(process: BaseProcess) -> None:
    """Stop it, and wait until every thread of it stands: one in a system call may finish that first."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    while not all(map(_stands, Path(f"/proc/{process.pid}/task").glob("*/stat"))):
        time.sleep(0.01)


def _stands(thread: Path) -> bool:
    try:
        return thread.read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # it has ended
        return True


def wait_for(there: Callable[[], Any], rank: Rank, seconds: float = 60) -> None:
    """Until something is there, or a rank ended."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end and rank.process.is_alive(), rank.said
        time.sleep(0.02)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two network namespaces with a link between them. Raises OSError where they cannot be made."""
    if not shutil.which("ip"):
        raise OSError("there is no ip command")
    names = [f"lit{os.getpid()}{end}" for end in "ab"]
    hosts = tuple(Host(n, f"10.99.0.{i}", f"v{n}") for i, n in enumerate(names, 1))
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", hosts[0].interface, "netns", names[0], "type", "veth", "peer", "name", hosts[1].interface,
           "netns", names[1])  # fmt: skip
        for host in hosts:
            ip("-n", str(host.namespace), "addr", "add", f"{host.address}/24", "dev", host.interface)
            for link in ("lo", host.interface):
                ip("-n", str(host.namespace), "link", "set", link, "up")
        yield hosts  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    ended = subprocess.run(["ip", *words], capture_output=True, text=True)
    if ended.returncode:
        raise OSError(ended.stderr)
