"""Arrays of the host on their way to the device."""

from __future__ import annotations

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
