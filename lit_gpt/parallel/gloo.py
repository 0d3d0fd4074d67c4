"""One thread for the collectives of each gloo group, against a race in torch that ends processes.

A gloo group of torch has two threads. After a collective each of them writes its name to the same std::string, and
holds no lock (`lastCompletedWorkName` in ProcessGroupGloo::runLoop, torch 2.13). A name of more than 15 characters,
such as ALLGATHER_COALESCED of DTensor's gathers, lies on the heap: where both threads write at once, its memory is
freed twice, and glibc aborts the process then or later ("double free or corruption"). One process that gathers one
number again and again on two cores ended so within a minute, six times of six; with one thread for each group it
made a million gathers. A group of one thread runs its collectives in the order of the calls, which all ranks share in
any case.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

INTERFACES = "GLOO_SOCKET_IFNAME"


@functools.cache
def one_thread_per_group() -> None:
    """From now on, in this process, every gloo group has one thread, whoever makes it.

    torch makes its groups itself, with a time limit and, from 2.14 on, another option by its name, so the class is
    where this can be said.
    """
    if not dist.is_gloo_available():
        return
    group = cast(Any, dist.ProcessGroupGloo)
    make = group.__init__

    def init(
        self: Any,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: timedelta = c10d.default_pg_timeout,
        **others: Any,
    ) -> None:
        options = group._Options()
        options._threads, options._timeout, options._devices = 1, timeout, _devices(group)
        for name, value in others.items():
            setattr(options, name, value)
        make(self, store, rank, size, options)

    group.__init__ = init


def _devices(group: Any) -> list[Any]:
    """What torch's own constructor takes: the interfaces that the environment names, else that of the host's name."""
    names = [name for name in os.environ.get(INTERFACES, "").split(",") if name]
    return [group.create_device(interface=name) for name in names] or [group.create_default_device()]
