"""How much memory an optimizer will keep, read off the optimizer itself over parameters without memory."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.optim import build
from lit_gpt.optim._wrapped import Wrapped
from lit_gpt.scaling.base import Plan


class _AnyNumber(TorchDispatchMode):
    """Lets code of a library read a number from a tensor that has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        return func(*args, **(kwargs or {}))


def state_bytes(groups: list[dict[str, Any]], plan: Plan, shards: dict[Tensor, int]) -> dict[Tensor, int] | None:
    """Bytes that the Plan's optimizer keeps for each parameter on one process between steps.

    groups: of groups.parameter_groups, over a model on the meta device. shards: into how many parts each
    parameter is divided, 1 for those that every process has whole. State with the rows of its parameter is
    divided with it; an optimizer that sees whole tensors keeps all of its state, and those tensors.
    None where the optimizer cannot be built without values, or is not installed. Raises UserError for arguments
    that it does not take.
    """
    try:
        with warnings.catch_warnings(), _AnyNumber(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            optimizer = build(groups, plan)
            if create := getattr(optimizer, "create_state", None):
                create()
    except NotInstalled:
        return None
    except UserError:
        raise
    except Exception:  # whatever a library does when tensors have no values
        return None
    whole = isinstance(optimizer, Wrapped) and optimizer.traits.sharding == "whole"
    sizes = {}
    for p, n in shards.items():
        # Without single numbers, and without what `Wrapped` keeps only while it validates.
        kept = [x for key, x in optimizer.state[p].items() if "/training_weights/" not in key]
        state = [x for x in kept if x.is_meta and x.numel() > 1]
        copy = [p] if whole and n > 1 else []
        sizes[p] = sum(shard_bytes(x, n if _same_rows(x, p) and not whole else 1) for x in state + copy)
    return sizes


def _same_rows(x: Tensor, p: Tensor) -> bool:
    return x.ndim == p.ndim and x.shape[:1] == p.shape[:1]


def shard_bytes(x: Tensor, shards: int) -> int:
    """Bytes of the largest of `shards` parts of a tensor's rows."""
    if shards == 1 or x.ndim == 0:
        return x.numel() * x.element_size()
    rows = x.shape[0]
    return -(-rows // shards) * (x.numel() // max(rows, 1)) * x.element_size()
