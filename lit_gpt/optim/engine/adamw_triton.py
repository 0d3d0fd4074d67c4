"""AdamW's step on a GPU in one pass over weights, gradients and moments: by the kernels of ops/kernels/adamw.py.

One launch for each tensor, for those where that is worth it. Nothing waits for the device: the count of steps, whether
the step is skipped and what gradients are divided by are read there. Rates, betas and eps are arguments in fp32, by
which Triton makes no variants of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.triton_calls import gpu_refuses, launch
from lit_gpt.optim.engine.matrix_batches import gradient, local
from lit_gpt.optim.engine.packed import BLOCK, HASHES, SCALE, WRITES, State, blocks_of_row, levels

KERNELS = "lit_gpt.ops.kernels.adamw"  # by name, since it imports Triton
DEVICE = "cuda"
OLDEST = (8, 0)  # compute capability, of what Triton supports; nothing in the kernels is for one GPU alone

# A launch takes the host about 20 microseconds. torch's fused kernel took 9.8 picoseconds for a number on an H200, and
# memory allows 6.5: from this many numbers on that is about as much.
LARGE = 2**22
# Of a program: 16 bytes of each tensor in fp32 for each thread of four warps. With 1,024 a step of 268M numbers took as
# long in fp32, and 3.33 ms and not 2.86 with moments in 8 bits (H200).
NUMBERS = 512
MOMENTS = ("exp_avg", "exp_avg_sq")


class Rates(NamedTuple):
    """What a step reads beside tensors, in the order of the kernels' arguments."""

    lr: float
    decay: float
    beta1: float
    beta2: float
    eps: float


def taken(params: Sequence[Tensor], state: State) -> list[Tensor]:
    """The parameters that these kernels step; torch's are for the others."""
    here = [p for p in params if local(p).device.type == DEVICE]
    refused = not here or gpu_refuses(KERNELS, OLDEST)
    return [] if refused else [p for p in here if _readable(local(p), gradient(p), state[p])]


def _readable(p: Tensor, g: Tensor, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor on DEVICE is stepped here: by what the kernels can read, and by its size."""
    kept = [local(state[key]) for key in state if key.startswith(MOMENTS)]
    packed = WRITES in state
    if not all(t.is_contiguous() and t.device == p.device for t in (p, g, *kept)):
        return False
    if any(t.dtype != torch.float32 for t in ((p, g) if packed else (p, g, *kept))):
        return False
    # Of a size that is no multiple of 16, and off its alignment, Triton would read a number at a time.
    return packed or (p.numel() >= LARGE and not p.numel() % 16 and not any(t.data_ptr() % 16 for t in (p, g, *kept)))


def step(params: Sequence[Tensor], state: State, rates: Rates, skip: Tensor, divisor: Tensor) -> None:
    """One step of AdamW of the parameters, of `taken`. skip, divisor: see role_optimizer.Control."""
    if not params:
        return
    counts = [local(state[p]["step"]) for p in params]
    torch._foreach_add_(counts, (~skip).float())
    # As torch's kernel computes them: powers in fp32, of a beta in fp32.
    counted = torch.stack(counts)
    first, second = 1 - rates.beta1**counted, (1 - rates.beta2**counted).sqrt()
    for which, p in enumerate(params):
        of_step = skip, divisor, first, second, which, *map(float, rates)
        (_step_packed if WRITES in state[p] else _step)(p, state[p], *of_step)
    if writes := [state[p][WRITES] for p in params if WRITES in state[p]]:
        torch._foreach_add_(writes, (~skip).int())


def _step(p: Tensor, state: Mapping[str, Tensor], *of_step: Any) -> None:
    weights, moments = local(p), [local(state[key]) for key in MOMENTS]
    numbers = weights.numel()
    _launch("adamw", -(-numbers // NUMBERS), weights, gradient(p), *moments, *of_step, numbers, BLOCK=NUMBERS)


def _step_packed(p: Tensor, state: Mapping[str, Tensor], *of_step: Any) -> None:
    weights, width = local(p), p.shape[-1]
    per_row = blocks_of_row(width)
    blocks, together = weights.numel() // width * per_row, NUMBERS // BLOCK
    kept = [local(state[key + ending]) for key in MOMENTS for ending in ("", SCALE)]
    given = weights, gradient(p), *kept, state[WRITES], *of_step, width, per_row, blocks
    codes = {"SIGNED": levels(torch.int8), "UNSIGNED": levels(torch.uint8), "HASH": HASHES[0], "HASH2": HASHES[1]}
    _launch("adamw_int8", -(-blocks // together), *given, BLOCKS=together, BLOCK=BLOCK, **codes)


def _launch(kernel: str, programs: int, *arguments: Any, **constants: int) -> None:
    if programs:  # a process may hold no rows
        launch(KERNELS, kernel, (programs,), *arguments, **constants, num_warps=4, enable_fp_fusion=False)
