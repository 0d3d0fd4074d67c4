"""The processes of a study's rows: their command lines, their devices, and the signals that end them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lit_gpt.errors import UserError
from lit_gpt.lab.rows import Row, run_folder_of, words_of

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN, TORCHRUN = ROOT / "pretrain.py", ROOT / "lit_gpt/utils/torchrun.py"
CPU = "cpu"
TRACKED = ("--loggers", "--use_mlflow", "--config")  # options that may ask for a tracker
Place = tuple[str, ...] | None  # the devices of a run; None is all there are


@dataclass(frozen=True)
class Settings:
    """How rows are run.

    launcher: what starts a run; empty is this Python, or torchrun where a run has several devices. devices: one entry
    per run at a time, the devices of that run; None is all there are, and the output goes here and not to log.txt.
    tries: starts of a run that fails. minutes: of one run, all its starts together. common, overruling: words for all
    runs; rows overrule the first, and the second overrule rows. watch: stop runs that diverge.
    overlap: start the next run of a place beside the end of the last one.
    """

    launcher: tuple[str, ...] = ()
    devices: tuple[Place, ...] = (None,)
    tries: int = 1
    minutes: float = float("inf")
    common: tuple[str, ...] = ()
    overruling: tuple[str, ...] = ()
    watch: bool = True
    program: Path = PRETRAIN
    overlap: bool = False


def devices_of(gpus: str, per_run: int) -> tuple[Place, ...]:
    """The places of `--gpus 0,0,1,1`, each with `per_run` devices; `cpu` is a place without a GPU.

    Raises UserError where they do not come out even, or a run would get one device twice.
    """
    names = [name.strip() for name in gpus.split(",") if name.strip()]
    if not names:
        return (None,)
    places = [tuple(names[i : i + per_run]) for i in range(0, len(names), per_run)]
    if len(places[-1]) != per_run or any(len(set(p)) < per_run for p in places if CPU not in p):
        raise UserError(
            f"--gpus {gpus} cannot be divided into places of --per_run {per_run} different GPUs. Name the GPUs of one "
            "run after another, such as --gpus 0,1,2,3 --per_run 2."
        )
    return tuple(places)


def command(row: Row, settings: Settings, output: Path, place: Place, fork: Path | None = None) -> list[str]:
    """The command line of one row; later options overrule earlier ones, so the row overrules `common`.

    fork: the run folder of the row that it goes on from; None is the one that is there. Trackers, where options may
    name some, show the rows as a group named like the output folder.
    """
    forked = [] if row.after is None else ["--fork_from", str(fork or run_folder_of(output / row.after))]
    ours = ["--out_dir", str(output / row.name), "--resume", "auto"]
    options = words_of(row.options)
    words = [*settings.common, *options, *settings.overruling, *forked, *ours]
    if any(word.partition("=")[0] in TRACKED for word in words):
        words = ["--tracker_group", output.resolve().name, "--tracker_name", row.name, *words]
    return [*_launcher(settings, place), str(settings.program), *words]


def _launcher(settings: Settings, place: Place) -> list[str]:
    if settings.launcher:
        return list(settings.launcher)
    return [sys.executable] if place is None or len(place) == 1 else torchrun(len(place))


def torchrun(processes: int) -> list[str]:
    """What starts one run on several devices of this machine, and ends with its exit code."""
    return [sys.executable, str(TORCHRUN), "--standalone", f"--nproc_per_node={processes}"]


def environment(place: Place, places: int) -> Mapping[str, str]:
    """The variables of a run: the devices that it sees, and on CPUs its share of the cores.

    torchrun gives its processes time to save, as in torchrun.sh.
    """
    variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100", **os.environ}
    if place is None:
        return variables
    if CPU not in place:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(place)}
    threads = str(max((os.cpu_count() or 1) // (places * len(place)), 1))
    return {"OMP_NUM_THREADS": threads, **variables, "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Children:
    """The processes that run now, each a group of its own, and the signals that end them.

    stopping: is set by the first signal, for all who would start or wait for something.
    """

    stopping: threading.Event
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Pass SIGTERM and Ctrl-C on while the block runs; the handlers from before come back."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before):
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = self.stopping.is_set()
        self.stopping.set()
        for process in self.running.copy():
            end(process, signal.SIGKILL if again else signal.SIGTERM)

    @contextlib.contextmanager
    def started(
        self, words: Sequence[str], variables: Mapping[str, str], log: Path | None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The process; its output goes to the end of `log`, or where ours goes."""
        with contextlib.nullcontext() if log is None else log.open("ab") as output:
            process = subprocess.Popen(words, env=variables, stdout=output, stderr=output, start_new_session=True)
        self.running.add(process)
        if self.stopping.is_set():  # the signal came while it started
            end(process, signal.SIGTERM)
        try:
            yield process
        finally:
            self.running.discard(process)


def end(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal: SIGKILL to a process and its children, others to the process, which passes them on itself."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def describe(place: tuple[str, ...]) -> str:
    """A place in words."""
    return "CPU" if CPU in place else f"GPU {','.join(place)}"
