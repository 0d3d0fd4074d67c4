"""The kernels of selective_scan.cu on a CPU, compiled by the host's C++ compiler; see cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lit_gpt.ops import selective_scan, selective_scan_cuda

COMPILER = shutil.which("g++")
KERNELS = ("scan_forward", "scan_ends", "scan_backward", "scan_carries")
ENTRY = """
extern "C" void run_{name}(const Arguments* p, unsigned columns, unsigned rows, int threads, int backwards) {{
    static Arguments given;
    given = *p;
    run_grid([] {{ {name}(given); }}, columns, rows, threads, backwards);
}}
"""


@cache
def compiled(dtype: torch.dtype, states: int) -> ctypes.CDLL:
    assert COMPILER
    emulated = Path(__file__).with_name("cuda_on_cpu.h").read_text()
    entries = "".join(ENTRY.format(name=name) for name in KERNELS)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        source.write_text(emulated + selective_scan_cuda.kernels(dtype, states) + entries)
        options = ("-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-Wl,-Bsymbolic")
        subprocess.run([COMPILER, *options, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def install(monkeypatch: Any, backwards: bool = False) -> None:
    """Have the row "cuda" of the selective scan do CPU tensors, too."""

    def kernel(name: str, x: torch.Tensor, states: int) -> Any:
        run = getattr(compiled(x.dtype, states), f"run_{name}")
        return lambda grid, threads, arguments: run(ctypes.byref(arguments), *grid, threads, int(backwards))

    row = selective_scan.BACKENDS["cuda"]._replace(refuses=lambda request: "")
    monkeypatch.setitem(selective_scan.BACKENDS, "cuda", row)
    monkeypatch.setattr(selective_scan_cuda, "_kernel", kernel)
    monkeypatch.setattr(selective_scan_cuda, "processors", lambda device: 1)
