"""Read checkpoints, on any number of ranks, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lit_gpt.checkpoint.averages import half_lives
from lit_gpt.checkpoint.contents import require_whole
from lit_gpt.checkpoint.export import load_exported
from lit_gpt.checkpoint.find import find_checkpoint
from lit_gpt.checkpoint.layout import Where, read_meta
from lit_gpt.checkpoint.state import (
    EMA,
    MODEL,
    NONE,
    OPTIM,
    Tensors,
    create_optimizer_state,
    flatten,
    model_tensors,
    put_back_numbers,
)
from lit_gpt.checkpoint.untrusted import Shapes, read_tensors, stored_shapes
from lit_gpt.errors import UserError


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    runtime: Where,
    averages: Mapping[str, torch.Tensor] = NONE,
) -> dict[str, Any]:
    """Load weights, optimizer state and averages in place; the meta that was saved with them.

    Call it on all ranks, before the first backward. Parameters keep their identity and sharding,
    which need not be those of the run that saved. averages: of the weights, see state.flatten.
    Raises UserError for an incomplete or damaged checkpoint, another version's, and when tensors are missing, extra,
    or of another shape.
    """
    require_whole(path, runtime)
    meta = read_meta(path)
    shapes = stored_shapes(path)
    create_optimizer_state(model, optimizer, shapes)
    state = flatten(model, optimizer, averages)
    _check(path, {name: tuple(t.shape) for name, t in state.items()}, shapes)
    read_tensors(path, state, no_dist=runtime.world_size == 1)
    put_back_numbers(model, optimizer, state)
    return meta


def load_averages(path: Path, averages: Mapping[str, torch.Tensor], runtime: Where) -> list[int]:
    """Load those averages in place whose half-lives a step folder has; the others stay as they are, as a fork wants it.

    averages: see state.flatten. Returns the half-lives that were loaded. Collective. Raises UserError as
    load_checkpoint does.
    """
    require_whole(path, runtime)
    shapes = stored_shapes(path)
    kept = [half_life for half_life in half_lives(shapes) if half_life in half_lives(EMA + name for name in averages)]
    mine = tuple(f"{EMA}{half_life}." for half_life in kept)
    state = {EMA + name: t for name, t in averages.items() if (EMA + name).startswith(mine)}
    found = {name: stored for name, stored in shapes.items() if name.startswith(mine)}
    _check(path, {name: tuple(t.shape) for name, t in state.items()}, found)
    read_tensors(path, state, no_dist=runtime.world_size == 1)
    return kept


def load_weights(path: Path, model: nn.Module, runtime: Where) -> dict[str, Any]:
    """Load weights only (`--init_from`), in place, and return the meta they were saved with.

    path: a step folder, a run folder (its newest whole checkpoint), or an exported .pth or
    .safetensors file. Collective. Raises UserError as load_checkpoint does.
    """
    own = model_tensors(model)
    if path.is_file():
        weights, meta = load_exported(path)
        _check(path, {n: tuple(t.shape) for n, t in own.items()}, {n: (t.shape, t.dtype) for n, t in weights.items()})
        _copy(weights, own)
        return meta
    folder = find_checkpoint(path, str(path), runtime)
    assert folder is not None, "a path names one, or it is an error"
    meta = read_meta(folder)
    shapes = {name: s for name, s in stored_shapes(folder).items() if name.startswith(MODEL)}
    state = {MODEL + name: t.detach() for name, t in own.items()}
    _check(folder, {name: tuple(t.shape) for name, t in state.items()}, shapes)
    read_tensors(folder, state, no_dist=runtime.world_size == 1)
    return meta


@torch.no_grad()
def _copy(weights: Tensors, own: Tensors) -> None:
    """Copy whole tensors into those of the same names, each process into its own shards."""
    for name, target in own.items():
        full = weights[name].to(target.dtype)
        if isinstance(target, DTensor):
            mesh, placements = target.device_mesh, target.placements
            full = distribute_tensor(full.to(mesh.device_type), mesh, placements, src_data_rank=None)
        target.copy_(full)


def _check(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Shapes) -> None:
    """Raise UserError unless the tensors `found` in a checkpoint have the names and shapes that are `wanted`."""
    shapes = [
        f"{n} is {tuple(found[n][0])}, the model has {wanted[n]}"
        for n in wanted
        if n in found and tuple(found[n][0]) != wanted[n]
    ]
    problems = {
        "missing": wanted.keys() - found.keys(),
        "not part of this run": found.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    lines = [f"  {what}: {_some(names)}" for what, names in problems.items() if names]
    if lines:
        hint = "the same model and optimizer" if any(n.startswith(OPTIM) for n in wanted) else "the same model"
        raise UserError("\n".join([f"{path} does not fit this run. It needs {hint}.", *lines]))


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
