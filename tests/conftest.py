"""Puts this folder on sys.path, so that tests can import the helpers beside it (spawn, tiny_model)."""

from __future__ import annotations

import gc
import getpass
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest

# Inductor keeps C++ made for one instruction set, and compiles it for another without the headers that it needs.
CAPABILITY = os.environ.get("ATEN_CPU_CAPABILITY", "own")
CACHE = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}_{CAPABILITY}")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))
# It also tries the compiler and torch with each instruction set that the processor has, for seven seconds of one core.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# Imports take longer than what processes of tests do, so one server imports and they are its forks. The first test that
# starts one starts the server: one did so without this, and every process after it imported for four seconds.
PRELOAD = ["pytest", "torch._dynamo", "lit_gpt.checkpoint", "lit_gpt.optim", "lit_gpt.train.loop", "pretrain"]
PRELOAD += ["tests.warm"]  # found from the root of the repository, where the tests are started
multiprocessing.set_forkserver_preload(PRELOAD)


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that several threads are slower."""
    import torch  # not by every test

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed is the same whichever tests its worker ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collectstart() -> None:
    """Collection makes millions of objects and keeps them: a quarter of its time would go into looking for garbage."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that begins last would leave the other worker without work."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What imports left is not searched for garbage again: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 100)
