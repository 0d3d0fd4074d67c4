"""What the files that launch this project's own Triton kernels share: which GPU they are for, and what they can read.

Shapes: B batch, T tokens, X heads or groups of them, D numbers of one, which lie side by side.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import missing, optional

TYPES = (torch.bfloat16, torch.float16, torch.float32)
CAPABILITY = (9, 0)  # that sizes are chosen for: elsewhere registers and shared memory are too small for them
COMPILERS = ("gcc", "clang")  # that Triton looks for, where CC names none
HEADS = 16  # at once in kernels of a number per head: as many as a GPU reads from memory at once, 32 bytes


class Launch(NamedTuple):
    """Of a kernel: warps, tiles of a loop on their way at once, and registers of a thread at most."""

    num_warps: int
    num_stages: int
    maxnreg: int | None = None


def launch(module: str, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: int | None) -> None:
    """Run a kernel of a module, which imports Triton and therefore is known by its name."""
    getattr(optional(module), kernel)[grid](*arguments, **constants)


def strides(x_BTXD: Tensor) -> tuple[int, int, int]:
    """Of rows, tokens and heads."""
    return x_BTXD.stride(0), x_BTXD.stride(1), x_BTXD.stride(2)


def readable(x_BTXD: Tensor) -> Tensor:
    """Itself, where its numbers lie side by side, and begin where Triton knows that it can read 16 bytes at once."""
    aligned = x_BTXD.data_ptr() % 16 == 0 and not any(n % 16 for n in strides(x_BTXD))
    return x_BTXD if x_BTXD.stride(3) == 1 and aligned else x_BTXD.contiguous()


def first_tokens(new_BT: Tensor) -> Tensor:
    """The first token of each token's document, int32, from where documents start; -1 for a row's first document."""
    t = torch.arange(new_BT.shape[1], device=new_BT.device, dtype=torch.int32)
    return torch.where(new_BT, t, -1).cummax(1).values


@torch.compiler.assume_constant_result
def gpu_refuses(module: str, oldest: tuple[int, int] | None = None) -> str:
    """Why a GPU cannot run the kernels of a module, or "". oldest: compute capability from which on it can, default:
    CAPABILITY alone.
    """
    if not torch.cuda.is_available():
        return ""  # whoever asks here plans for a GPU elsewhere
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < (oldest or CAPABILITY) or (oldest is None and capability != CAPABILITY):
        wanted, later = ".".join(map(str, oldest or CAPABILITY)), " or later" if oldest else ""
        return f"it is for compute capability {wanted}{later}, and this GPU has {capability[0]}.{capability[1]}"
    return missing(module) or _without_compiler()


@cache
def _without_compiler() -> str:
    """Why Triton cannot build what calls its kernels, or "": it would fail at the first call. As its runtime/build.py
    looks for them (Triton 3.6 to 3.8).
    """
    if "CC" not in os.environ and not any(map(shutil.which, COMPILERS)):
        return f"Triton needs a C compiler, {' or '.join(COMPILERS)} (apt install build-essential), to call its kernels"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not Path(sysconfig.get_path("include", scheme), "Python.h").exists():
        return "Triton needs Python.h (apt install python3-dev) to call its kernels"
    return ""
