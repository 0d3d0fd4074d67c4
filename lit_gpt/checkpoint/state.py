"""What a checkpoint holds, as one flat dict of tensors.

    model.<parameter or persistent buffer>          DTensors (sharded) or plain tensors (replicated)
    optim.<parameter>.<key of optimizer.state>      likewise; numbers become 0-d tensors
    ema.<half-life in tokens>.<parameter>           averages of the weights, where the run keeps some

Hyper-parameters of the optimizer's groups are not part of it: the Plan rebuilds them. Neither is
the state of random number generators: nothing in training draws numbers but the order of the
data, which the cursor derives from the seed. torch.distributed.checkpoint's own state_dict
helpers are not used because they call optimizer.step() on an optimizer without state.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

MODEL, OPTIM, EMA = "model.", "optim.", "ema."
Tensors = dict[str, torch.Tensor]
NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


def model_tensors(model: nn.Module) -> Tensors:
    """Parameters (each once) and persistent buffers, by name without prefix, not copied."""
    # First, for its hook: after a forward without backward it puts the sharded parameters back.
    persistent = model.state_dict()
    buffers = {name: b for name, b in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """<parameter>.<key> -> tensor of the optimizer's state; numbers as new 0-d tensors."""
    return {
        f"{name}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, p in _optimized(model, optimizer).items()
        for key, value in optimizer.state.get(p, {}).items()
    }


def flatten(model: nn.Module, optimizer: Optimizer, averages: Mapping[str, torch.Tensor] = NONE) -> Tensors:
    """All tensors of a checkpoint, by their names in it, not copied.

    averages: of the weights, see WeightAverages.tensors in optim/engine/averages.py.
    """
    if hasattr(optimizer, "expose_state"):  # see optim/engine/protocol.py
        cast(Any, optimizer).expose_state()
    weights = {MODEL + name: t.detach() for name, t in model_tensors(model).items()}
    state = {OPTIM + name: t for name, t in optimizer_tensors(model, optimizer).items()}
    return weights | state | {EMA + name: t for name, t in averages.items()}


def create_optimizer_state(model: nn.Module, optimizer: Optimizer, sizes: Mapping[str, Any]) -> None:
    """Give parameters without optimizer state the tensors that a checkpoint has for them.

    Our optimizers create their state at once, wrapped ones when asked, torch's at the first step.
    sizes: name in the checkpoint -> (shape, dtype).
    """
    if hasattr(optimizer, "create_state"):
        cast(Any, optimizer).create_state()
        return
    without = {f"{OPTIM}{n}": p for n, p in _optimized(model, optimizer).items() if not optimizer.state.get(p)}
    for stored, (shape, dtype) in sizes.items():
        name, _, key = stored.rpartition(".")
        if name in without:
            optimizer.state[without[name]][key] = _empty(without[name], shape, dtype)


def put_back_numbers(model: nn.Module, optimizer: Optimizer, loaded: Tensors) -> None:
    """Tensors are loaded in place; numbers in the optimizer's state are assigned here."""
    for name, p in _optimized(model, optimizer).items():
        state = optimizer.state[p]
        for key, value in state.items():
            if not isinstance(value, torch.Tensor):
                state[key] = type(value)(loaded[f"{OPTIM}{name}.{key}"].item())
    if hasattr(optimizer, "adopt_state"):
        cast(Any, optimizer).adopt_state()


def _optimized(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: p for group in optimizer.param_groups for p in group["params"]}


def _empty(p: nn.Parameter, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Like the parameter where the shape allows (so sharded like it); scalars live on the host."""
    if shape == p.shape:
        return torch.empty_like(p, dtype=dtype, requires_grad=False)
    assert not isinstance(p, DTensor) or not shape, f"no sharding known for optimizer state of shape {shape}"
    return torch.empty(shape, dtype=dtype, device=p.device if shape else "cpu")
