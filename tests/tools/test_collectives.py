"""inspect env --nccl, with gloo on the CPU in place of NCCL, and with what nvidia-smi prints on real nodes."""

from __future__ import annotations

import os
import time
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.tools import _collectives, inspect
from lit_gpt.tools._collectives import COLLECTIVES, Collective, _Rank, links, measure


def a_late_rank(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The other one waits for it in the collective."""
    if rank == 1:
        time.sleep(600)
    return COLLECTIVES["all-reduce"].inputs(rank, ranks, n, device)


def a_killed_rank(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    if rank == 1:
        os._exit(7)
    return COLLECTIVES["all-reduce"].inputs(rank, ranks, n, device)


def a_wrong_sum(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    given, result, right = COLLECTIVES["all-reduce"].inputs(rank, ranks, n, device)
    right[5] += rank  # as if a link had changed one value
    return given, result, right


def one_thread(rank: int, ranks: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    assert cast(Any, dist.group.WORLD)._get_backend(device).options._threads == 1
    return COLLECTIVES["all-reduce"].inputs(rank, ranks, n, device)


def with_inputs(inputs) -> dict[str, Collective]:
    return {"all-reduce": COLLECTIVES["all-reduce"]._replace(inputs=inputs)}


def test_collectives_are_right_and_have_a_speed():
    found = measure(2, "gloo", mib=0.25)
    assert found.keys() == {"all-reduce", "all-gather", "reduce-scatter"}
    assert all(bandwidth > 0 for bandwidth in found.values())


def test_its_groups_are_those_of_a_run():
    assert measure(2, "gloo", mib=0.25, collectives=with_inputs(one_thread)).keys() == {"all-reduce"}


def test_the_right_results_are_those_of_plain_sums():
    """What `measure` compares with, against loops over the ranks."""
    ranks, n, cpu = 3, 300, torch.device("cpu")
    given = [COLLECTIVES["all-reduce"].inputs(rank, ranks, n, cpu)[0] for rank in range(ranks)]
    parts = [COLLECTIVES["all-gather"].inputs(rank, ranks, n, cpu)[0] for rank in range(ranks)]
    total = [sum(x[i].item() for x in given) for i in range(n)]
    for rank in range(ranks):
        right = {name: c.inputs(rank, ranks, n, cpu)[2] for name, c in COLLECTIVES.items()}
        assert right["all-reduce"].tolist() == total
        assert right["all-gather"].tolist() == [x for part in parts for x in part.tolist()]
        assert right["reduce-scatter"].tolist() == total[rank * 100 : (rank + 1) * 100]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (a_killed_rank, r"Rank 1 ended with exit code 7 in making the input of all-reduce\."),
        (a_wrong_sum, r"Rank 1 failed in all-reduce: 1 of 65,536 values are wrong"),
    ],
)
def test_trouble_has_a_rank(inputs, said):
    with pytest.raises(UserError, match=said):
        measure(2, "gloo", mib=0.25, timeout=60, collectives=with_inputs(inputs))


def test_a_late_rank_is_named(monkeypatch):
    """The time is over as soon as both have said all that they will say, however long they took to start."""
    heard, last = set[tuple[int, str]](), {(0, "all-reduce"), (1, "making the input of all-reduce")}
    hear, wait = _Rank.hear, _collectives.wait

    def noted(self: _Rank) -> None:
        hear(self)
        heard.add((self.rank, self.at))

    monkeypatch.setattr(_Rank, "hear", noted)
    monkeypatch.setattr(_collectives, "wait", lambda pipes, limit: [] if last <= heard else wait(pipes, limit))
    with pytest.raises(UserError, match=r"Nothing moved for 60 seconds: rank 1 did not come out of making the input"):
        measure(2, "gloo", mib=0.25, timeout=60, collectives=with_inputs(a_late_rank))


@pytest.mark.parametrize(("gpus", "said"), [(0, "torch sees no GPU here"), (1, "torch sees one GPU here")])
def test_without_two_gpus_it_says_so(monkeypatch, gpus, said):
    monkeypatch.setattr(_collectives.torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=said):
        inspect.main(["env", "--nccl"])


SWITCHED = """\
\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tPIX\t0-47,96-143\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tSYS\t0-47,96-143\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tSYS\t48-95\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""
PCIE = """\
\tGPU0\tGPU1\tGPU2\tCPU Affinity\tNUMA Affinity
GPU0\t X \tPIX\tSYS\t0-15\t0
GPU1\tPIX\t X \tSYS\t0-15\t0
GPU2\tSYS\tSYS\t X \t16-31\t1
"""


def test_links_in_words():
    assert links(SWITCHED) == [("18 NVLinks", "every pair")]
    assert links(PCIE) == [("one PCIe switch", "0-1"), ("PCIe across CPU sockets", "0-2, 1-2")]
    assert links("") == [("nvidia-smi did not say", "")]
