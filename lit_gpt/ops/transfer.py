"""Numbers on their way from the host to the device and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy without blocking the host.

    To a GPU through pinned memory: a copy from any other waits for all that the device has to do. numpy fills that
    memory, in this thread alone. tensor.pin_memory() copies from 32,768 numbers on with every thread of OpenMP, which
    then spin for milliseconds after each copy (GOMP_SPINCOUNT), and where other processes want their cores, the copy
    waits until each of them has had its turn.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty_like(tensor, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor that nobody changes; what is returned waits for the copy, and gives it.

    .item() and .tolist() wait until the device has nothing left to do, and it stays so until the host has given it
    something new. Whoever asks here, gives the device its next step and then waits, does not stop it.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait
