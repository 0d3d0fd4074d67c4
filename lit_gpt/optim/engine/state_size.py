"""How many bytes of state an optimizer keeps between steps, from its facts.

State has the dtype of its parameter, and what is smaller is counted in parts of it.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any

from torch import Tensor

from lit_gpt.optim.engine.packed import blocks_of_row, packs
from lit_gpt.scaling.optimizer_facts import Args, Kept, OptimizerFacts


def state_bytes(
    groups: list[dict[str, Any]], facts: OptimizerFacts, args: Args, shards: dict[Tensor, int]
) -> dict[Tensor, int] | None:
    """Parameter -> bytes that the optimizer keeps for it on one process between steps.

    groups: made by groups.parameter_groups, over a model that may be on the meta device. args: --optimizer_args.
    shards: parameter -> into how many parts its rows are divided, 1 for those that every process has whole.

    State that has the rows of its parameter is divided with it. An optimizer that must see whole tensors
    (facts.gathered) keeps all of its state on every process, and whole copies of divided weights. Returns None where
    one of the update rules does not say what it keeps.
    """
    sizes = {}
    for group in groups:
        memory = facts.rule(group["role"]).memory
        if memory is None:
            return None
        for p in group["params"]:
            shape, n = tuple(p.shape), shards[p]
            if not facts.gathered:
                kept = memory(shape, args)
            elif group["role"] == "expert":  # the library sees each expert as a matrix of its own
                kept = Kept(0, shape[0] * sum(memory(shape[1:], args)))
            else:
                kept = Kept(0, sum(memory(shape, args)))
            copy = p.numel() if facts.gathered and n > 1 else 0
            share = ceil(shape[0] / n) / shape[0] if n > 1 else 1.0  # of a process with as many rows as any
            of_rows = p.element_size() * kept.with_rows
            if args.get("state") == "int8" and not facts.gathered and packs(shape):
                of_rows = _packed(shape, kept.with_rows, p.element_size())
            sizes[p] = round(of_rows * share + p.element_size() * (kept.whole + copy))
    return sizes


def _packed(shape: tuple[int, ...], numbers: float, itemsize: int) -> float:
    """Bytes of state in 8 bits: every tensor of the parameter's shape as codes and scales, the rest as it is."""
    tensors, rest = divmod(numbers, prod(shape))
    return tensors * (prod(shape) + 4 * prod(shape[:-1]) * blocks_of_row(shape[-1])) + itemsize * rest


def shard_bytes(x: Tensor, shards: int) -> int:
    """Bytes of the largest of `shards` parts of a tensor's rows."""
    if shards == 1 or x.ndim == 0:
        return x.numel() * x.element_size()
    rows = x.shape[0]
    return -(-rows // shards) * (x.numel() // max(rows, 1)) * x.element_size()
