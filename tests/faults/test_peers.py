"""Processes that freeze, die, or lose the network: the others end within the stated time, and say who is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from ranks import Host, Rank, freeze, ip, run, start_alone, start_ranks, two_hosts, wait_for
from spawn import run_distributed
from tiny_run import pretrain, rows, words

from lit_gpt.errors import EXIT_PEER_LOST
from lit_gpt.parallel import start_runtime
from lit_gpt.parallel.peers import FOLDER, NEARLY, Peers, _ended
from lit_gpt.train.loop import Trainer
from lit_gpt.utils import signals

LONG: dict[str, Any] = {"micro_bsz": 1, "max_tokens": 10**6, "save_step": 2, "eval_step": 10**6}
FIRST_LIMIT, LIMIT = 60, 3  # seconds


@pytest.fixture
def hosts():
    try:
        with two_hosts() as made:
            yield made
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")


def trained(out: Path) -> bool:
    """Whether some steps were logged."""
    return any(file.read_text().count("\n") > 2 for file in out.glob("*/metrics.jsonl"))


def begin(
    data: Path,
    folder: Path,
    world: int,
    hosts: tuple[Host, ...] = (Host(),),
    main: Callable[[list[str]], int] = pretrain.main,
    **options: Any,
) -> list[Rank]:
    out = folder / "out"
    ranks = start_ranks(folder, world, main, words(data, out, **LONG, **options), hosts=hosts)
    wait_for(lambda: trained(out), ranks[0])
    return ranks


def end(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.process.kill()
        rank.process.join()


def hurried(argv: list[str]) -> int:
    """pretrain.py whose limit is short once it trains: a start takes seconds where others compute, too."""
    step = Trainer.step

    def patched(self: Trainer, report: Any) -> None:
        if self.progress.step == 1:
            assert self.runtime.timeout == FIRST_LIMIT
            for group in c10d._world.pg_map:
                c10d._set_pg_timeout(timedelta(seconds=LIMIT), group)
            object.__setattr__(self.runtime, "timeout", float(LIMIT))
            self.at.__self__.patience = NEARLY * LIMIT  # type: ignore[attr-defined]
        step(self, report)

    Trainer.step = patched  # type: ignore[method-assign]
    Peers._interval = property(lambda self: LIMIT / 10)  # type: ignore[assignment, method-assign]
    return pretrain.main(argv)


def test_a_frozen_rank_ends_the_others(data, tmp_path):
    """They waited for half an hour, and then said "Timed out" with a traceback and the address of a socket."""
    ranks = begin(data, tmp_path, 3, main=hurried, collective_timeout=FIRST_LIMIT, total_bsz=384)
    freeze(ranks[1].process)
    try:
        assert [ranks[i].ends() for i in (0, 2)] == [EXIT_PEER_LOST] * 2, ranks[0].said
        for i in (0, 2):
            assert f"rank {i}: error: in step " in ranks[i].said and "rank 1 (process " in ranks[i].said
            assert "last seen in step " in ranks[i].said and "no sign of life" in ranks[i].said
            assert "--collective_timeout 3 seconds" in ranks[i].said and "Traceback" not in ranks[i].said
    finally:
        end(ranks)
    options = {**LONG, "total_bsz": 384, "resume": "auto", "stop_after": 1}
    assert run(data, tmp_path / "out", **options) == 75, "nothing was damaged"


def test_one_process_removes_what_several_left(tmp_path):
    """Killed, and gone on with on one process, they left their folder in the run for good."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "1.json").write_text("{}")
    Peers(tmp_path, start_runtime()).close()
    assert not list(tmp_path.iterdir())


def test_a_killed_rank_ends_the_others_at_once(data, tmp_path):
    """The limit is ten minutes; the closed connection is enough."""
    ranks = begin(data, tmp_path, 2)
    ranks[1].process.kill()
    try:
        assert ranks[0].ends(30) == EXIT_PEER_LOST, ranks[0].said
        assert "a connection failed" in ranks[0].said and "rank 1 (process " in ranks[0].said
        assert "has ended" in ranks[0].said, ranks[0].said
    finally:
        end(ranks)


def test_two_hosts_train_as_one_and_a_killed_one_ends_the_other(data, tmp_path, hosts):
    """HSDP over gloo between two network namespaces: the losses of one process, to rounding."""
    alone = tmp_path / "alone"
    assert run(data, alone, **{**LONG, "stop_after": 3}) == 75
    ranks = begin(data, tmp_path, 4, hosts)
    for i in (2, 3):
        ranks[i].process.kill()
    try:
        assert [ranks[i].ends(30) for i in (0, 1)] == [EXIT_PEER_LOST] * 2, ranks[0].said
    finally:
        end(ranks)
    expected, found = rows(alone), rows(tmp_path / "out")
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-5)


def test_a_cut_link_ends_both_hosts(data, tmp_path, hosts):
    """One host hung for good: its processes were there after two minutes."""
    ranks = begin(data, tmp_path, 4, hosts, hurried, collective_timeout=FIRST_LIMIT)
    ip("-n", hosts[0].namespace, "link", "set", hosts[0].interface, "down")
    try:
        assert [rank.ends(30) for rank in ranks] == [EXIT_PEER_LOST] * 4, [rank.said for rank in ranks]
        assert all("error: in step " in rank.said for rank in ranks), [rank.said for rank in ranks]
        assert any("rank 2 (process " in rank.said for rank in ranks[:2]), [rank.said for rank in ranks]
        assert any(f" on {hosts[0].namespace})" in rank.said for rank in ranks[2:]), [rank.said for rank in ranks]
    finally:
        end(ranks)


def limits() -> set[timedelta]:
    """Of every process group that a run makes: of the world, of both axes of the mesh, of checkpoints."""
    runtime = start_runtime(timeout=77.0)
    assert runtime.mesh is not None
    groups = [dist.group.WORLD, *runtime.mesh.get_all_groups(), dist.new_group(backend="gloo")]
    return {g._get_backend(torch.device("cpu")).options._timeout for g in groups}


def test_every_group_has_the_limit():
    """Groups made by DeviceMesh and new_group took torch's half hour instead of the run's limit."""
    assert run_distributed(limits, 4, nodes=2) == [{timedelta(seconds=77)}] * 4


def without_launcher(data: Path, out: Path, pid_file: Path) -> int:
    """A launcher that starts a run, whose process hangs after a step as in a collective, and is killed."""
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    signals.GRACE = 0.5
    if child := os.fork():
        pid_file.write_text(str(child))
        os.waitpid(child, 0)
        return 0
    step = Trainer.step

    def hanging(self: Trainer, report: Any) -> None:
        step(self, report)
        if self.progress.step == 3:
            time.sleep(600)

    Trainer.step = hanging  # type: ignore[method-assign]
    return pretrain.main(words(data, out, **LONG))


def test_a_rank_without_its_launcher_leaves(data, tmp_path):
    """torchrun was killed, and its processes trained on, or hung, for ever."""
    out, pid_file = tmp_path / "out", tmp_path / "pid"
    launcher = start_alone(tmp_path, without_launcher, data, out, pid_file)
    wait_for(lambda: trained(out), launcher)
    launcher.process.kill()
    pid = int(pid_file.read_text())
    wait_until_gone(pid)
    assert "torchrun (process " in launcher.said and "is gone" in launcher.said
    assert "with that of step 2 being written" in launcher.said


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while not _ended(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)
