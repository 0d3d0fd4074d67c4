"""Copy a state to host memory, so that training may change it while the copy is being written to disk."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from lit_gpt.checkpoint.state import Tensors


class Staging:
    """Buffers in host memory for the tensors of a state, allocated at the first copy and used again.

    Those of CUDA tensors are page-locked, without which a copy cannot be asynchronous, and is slower.
    """

    def __init__(self) -> None:
        self.buffers: Tensors = {}

    def copy(self, state: Tensors) -> Tensors:
        """The same names, shapes and sharding, on the host. Waits for the copies to arrive.

        Valid until the next call.
        """
        staged = {name: self._copy(name, tensor) for name, tensor in state.items()}
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return staged

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        buffer = self.buffers.get(name)
        if buffer is None:
            buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self.buffers[name] = buffer
        buffer.copy_(local.detach(), non_blocking=True)
        # The constructor, because DTensor.from_local would move the copy back to the mesh's device.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer
