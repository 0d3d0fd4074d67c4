"""What some optimizers need of the training loop beyond `step`, and how it is asked for.

| an optimizer may have | what the loop does |
|---|---|
| `averages`, `use_averages()`, `use_training_weights()` | validates, saves and exports the averaged weights |
| `curvature_due()`, `update_curvature(samples)` | after a step, back-propagates labels that the model draws |
| `telemetry()` | logs these numbers |
| `expose_state()`, `create_state()`, `adopt_state()` | lets it show and take over its state around checkpoints |
| `grad_scale`, `found_inf` | leaves clipping and skipping of steps to it (train/step.py) |

The loop asks for each of these here, and never for the name of an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def evaluated_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it the model has the weights that are to be validated, saved and exported.

    Afterwards it has those it had before, to the bit.
    """
    if not getattr(optimizer, "averages", False):
        yield
        return
    reshard(model)
    cast(Any, optimizer).use_averages()
    try:
        yield
    finally:
        reshard(model)
        cast(Any, optimizer).use_training_weights()


def reshard(model: nn.Module) -> None:
    """Drop gathered weights, which a change of the shards would leave stale."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def curvature_due(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer wants gradients of labels drawn from the model, after this step."""
    return hasattr(optimizer, "curvature_due") and cast(Any, optimizer).curvature_due()


def telemetry(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Metric key -> number that the optimizer wants logged; empty for most."""
    return cast(Any, optimizer).telemetry() if hasattr(optimizer, "telemetry") else {}
