"""On a CPU freed memory stays with the process, so that a step of training asks the kernel for no page twice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lit_gpt.utils.heap import BY_HAND, keep_freed_memory

# Sixteen blocks of 4 MiB are taken, written to and freed, five times: how many pages the last time asks for.
FAULTS = """
import resource
import torch
from lit_gpt.parallel import start_runtime

def faults():
    blocks = [torch.ones(2**20) for _ in range(16)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

start_runtime()
before = [faults() for _ in range(4)][-1]
print(faults() - before)
"""


def pages(**environment: str) -> int:
    """How many pages a process asks for that has started a run."""
    free = {name: value for name, value in os.environ.items() if name not in BY_HAND}
    free |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=free, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc, or the environment has its thresholds")
def test_a_run_takes_the_same_pages_again() -> None:
    blocks = 16 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert pages() < blocks / 10
    # Thresholds of the environment stay as they are: here every block is a mapping of its own.
    assert pages(MALLOC_MMAP_THRESHOLD_="131072") > blocks / 2


def test_thresholds_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BY_HAND[0], "1")
    assert not keep_freed_memory()
