"""What is between the GPUs of this node: links, peer access, and whether collectives are right, and how fast.

One process per GPU, as torchrun would start them. Each tells this one where it is, so that a hang has a name.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from itertools import combinations
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.cuda import nccl

from lit_gpt.errors import UserError
from lit_gpt.parallel.gloo import one_thread_per_group
from lit_gpt.utils.text import aligned

TIMEOUT = 60.0  # seconds without a word from any process; NCCL's start takes a few on eight GPUs
MIB = 256  # of each collective: large enough for the full bandwidth of NVLink
WARM, TIMED = 3, 10  # calls
PATTERN = 97  # values count up to this and begin anew, so that a part in a wrong place is seen; sums are exact in fp32

ADVICE = "NCCL_DEBUG=INFO before the command shows what NCCL does."

# What `nvidia-smi topo -m` writes (its own legend), from near to far; NV18 is 18 NVLinks.
LINKS = {
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "PCIe through the CPU",
    "NODE": "PCIe within one CPU socket",
    "SYS": "PCIe across CPU sockets",
}


class Collective(NamedTuple):
    """One kind, on `n` values in all.

    inputs(rank, ranks, n, device): what a rank gives, its result's buffer, and the right result. run(result, given).
    passes: how often each byte crosses a link but for the rank's own part: bus bandwidth = passes (ranks - 1) / ranks x
    bytes / seconds, as nccl-tests has it (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
    """

    inputs: Callable[[int, int, int, torch.device], tuple[Tensor, Tensor, Tensor]]
    run: Callable[[Tensor, Tensor], Any]
    passes: int


def _values(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device).remainder(PATTERN).float()


def _all_reduce(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    given = _values(n, device) + rank
    return given, given.clone(), ranks * _values(n, device) + ranks * (ranks - 1) / 2


def _all_gather(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    part = _values(n // ranks, device)
    return part + rank, torch.zeros(n, device=device), torch.cat([part + other for other in range(ranks)])


def _reduce_scatter(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    given, _, total = _all_reduce(rank, ranks, n, device)
    return given, torch.zeros(n // ranks, device=device), total.chunk(ranks)[rank]


def _reduce_in_place(result: Tensor, given: Tensor) -> None:
    dist.all_reduce(result)


# Not lambdas: these go to other processes by name.
COLLECTIVES: dict[str, Collective] = {
    "all-reduce": Collective(_all_reduce, _reduce_in_place, 2),
    "all-gather": Collective(_all_gather, dist.all_gather_into_tensor, 1),
    "reduce-scatter": Collective(_reduce_scatter, dist.reduce_scatter_tensor, 1),
}


def report() -> str:
    """Links, peer access and collectives of all visible GPUs, in words. Raises UserError below two GPUs."""
    gpus = torch.cuda.device_count()
    if gpus < 2:
        seen = "one GPU" if gpus else "no GPU"
        raise UserError(f"--nccl checks what is between the GPUs of a node, and torch sees {seen} here; it takes two.")
    speeds = measure(gpus)
    rows = [("collective", "MiB", "bus bandwidth, GB/s"), *((k, str(MIB), f"{v:.1f}") for k, v in speeds.items())]
    version = ".".join(map(str, nccl.version()))
    sections = {
        "links, GPUs as nvidia-smi counts them": aligned(links(_topology()), indent=2),
        "peer access": f"  {_peers(gpus)}",
        f"collectives of {gpus} GPUs with NCCL {version}, every result right": aligned(rows, indent=2, right=(1, 2)),
    }
    return "\n\n".join(f"{title}\n{body}" for title, body in sections.items())


def _topology() -> str:
    try:
        return subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def links(topology: str) -> list[tuple[str, str]]:
    """(link in words, pairs of GPUs that have it) from what `nvidia-smi topo -m` prints."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).split() for line in topology.splitlines()]  # its header is underlined
    kinds = {cells[0]: cells[1:] for cells in lines if len(cells) > 2 and re.fullmatch(r"GPU\d+", cells[0])}
    if lines and lines[0][:1] == ["GPU0"]:
        kinds.setdefault("GPU0", lines[0][1:])
    names = [name for name in kinds if len(kinds[name]) >= len(kinds)]
    found: dict[str, list[str]] = {}
    for i, j in combinations(range(len(names)), 2):
        found.setdefault(kinds[names[i]][j], []).append(
            f"{names[i].removeprefix('GPU')}-{names[j].removeprefix('GPU')}"
        )
    rows = [(_in_words(kind), "every pair" if len(found) == 1 else ", ".join(pairs)) for kind, pairs in found.items()]
    return rows or [("nvidia-smi did not say", "")]


def _in_words(kind: str) -> str:
    nvlinks = kind.removeprefix("NV")
    return f"{nvlinks} NVLinks" if nvlinks.isdecimal() else LINKS.get(kind, kind)


def _peers(gpus: int) -> str:
    barred = [f"{i}-{j}" for i, j in combinations(range(gpus), 2) if not torch.cuda.can_device_access_peer(i, j)]
    return f"not between {', '.join(barred)}" if barred else "every GPU can read the memory of every other"


class _Rank:
    """A process, as far as this one knows.

    at: in what it is. steps: how many things it said. trouble: why it ended, with how near that is to the cause, 0
    nearest: where one process ends, the others' connections fail.
    """

    def __init__(self, rank: int, process: Any, pipe: Connection):
        self.rank, self.process, self.pipe = rank, process, pipe
        self.at, self.steps, self.finished = "its start", 0, False
        self.trouble: tuple[int, str] | None = None
        self.seconds: dict[str, float] = {}

    def hear(self) -> None:
        """Take one message, or the end of the process, which ends the pipe."""
        try:
            kind, said, seconds = self.pipe.recv()
        except EOFError:
            self.process.join()
            how = f"ended with exit code {self.process.exitcode}"
            self.trouble = (0, f"Rank {self.rank} {how} in {self.at}. {ADVICE}")
            return
        self.steps += 1
        self.finished = kind == "finished"
        if kind == "at":
            self.at = said
        elif kind == "took":
            self.seconds[said] = seconds
        elif kind in ("wrong", "failed"):
            self.trouble = (1 if kind == "wrong" else 2, f"Rank {self.rank} failed in {self.at}: {said}")


def measure(
    ranks: int,
    backend: str = "nccl",
    *,
    timeout: float = TIMEOUT,
    mib: float = MIB,
    collectives: Mapping[str, Collective] = COLLECTIVES,
) -> dict[str, float]:
    """Bus bandwidth in GB/s of each collective over so many new processes, one per GPU; gloo: on the CPU.

    Raises UserError, naming the rank, for a wrong result, a process that fails or ends, and one that is not heard of
    for `timeout` seconds.
    """
    n = int(mib * 2**20 / 4) // ranks * ranks
    started: list[_Rank] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(ranks):
                started.append(_start(rank, ranks, backend, n, f"{Path(folder, 'store').as_uri()}", collectives))
            _listen(started, timeout)
        finally:
            for one in started:
                one.process.kill()
                one.process.join()
    slowest = {name: max(one.seconds[name] for one in started) for name in collectives}
    crossing = n * 4 * (ranks - 1) / ranks  # bytes
    return {name: collectives[name].passes * crossing / seconds / 1e9 for name, seconds in slowest.items()}


def _start(rank: int, *work: Any) -> _Rank:
    context = multiprocessing.get_context("forkserver")  # a fork of this process could not use CUDA
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, rank, *work), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    return _Rank(rank, process, here)


def _listen(started: list[_Rank], timeout: float) -> None:
    """Until every process has finished. Raises UserError."""
    while waiting := [one for one in started if not one.finished]:
        if not _hear(waiting, timeout):
            raise UserError(_hung(waiting, timeout))
        if any(one.trouble for one in waiting):
            time.sleep(1)  # others fail for the same reason, and may have been heard first
            while _hear([one for one in waiting if not (one.trouble or one.finished)], 0):
                pass
            raise UserError(min(one.trouble for one in waiting if one.trouble)[1])


def _hear(waiting: list[_Rank], timeout: float) -> bool:
    """Take a message of each process that has one; whether there was any within so many seconds."""
    heard = wait([one.pipe for one in waiting], timeout) if waiting else []
    for one in waiting:
        if one.pipe in heard:
            one.hear()
    return bool(heard)


def _hung(waiting: list[_Rank], timeout: float) -> str:
    least = min(one.steps for one in waiting)
    behind = [one for one in waiting if one.steps == least]
    names = ", ".join(f"rank {one.rank}" for one in behind)
    alone = "" if len(behind) < len(waiting) else " None is behind the others, so a link between them is stuck."
    return (
        f"Nothing moved for {timeout:g} seconds: {names} did not come out of {behind[0].at}.{alone} {ADVICE} "
        "NCCL_P2P_DISABLE=1 tells whether peer access is at fault."
    )


def _work(
    pipe: Connection,
    rank: int,
    ranks: int,
    backend: str,
    n: int,
    store: str,
    collectives: Mapping[str, Collective],
) -> None:
    """What a process does; it says (what happened, where it is, seconds)."""
    warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has new names for two of these, which 2.11 has not
    try:
        cuda = backend == "nccl"
        device = torch.device("cuda", rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        pipe.send(("at", f"the start of {backend}", 0))
        one_thread_per_group()  # as in a run
        # The one that watches ends a hang; this limit is for when it is gone.
        dist.init_process_group(backend, store, timeout=timedelta(minutes=10), rank=rank, world_size=ranks)
        for name, collective in collectives.items():
            pipe.send(("at", f"making the input of {name}", 0))
            given, result, right = collective.inputs(rank, ranks, n, device)
            pipe.send(("at", name, 0))
            collective.run(result, given)
            if not torch.equal(result, right):
                pipe.send(("wrong", f"{int((result != right).sum()):,} of {len(right):,} values are wrong", 0))
                return
            pipe.send(("took", name, _timed(partial(collective.run, result, given), device)))
        pipe.send(("at", "the end", 0))
        dist.destroy_process_group()
        pipe.send(("finished", "", 0))
    except Exception as error:
        pipe.send(("failed", str(error).split("\n")[0], 0))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    """Mean seconds of a call."""
    for _ in range(WARM):
        run()
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(TIMED):
        run()
    _wait_for(device)
    return (time.perf_counter() - start) / TIMED


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
