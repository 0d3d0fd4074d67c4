"""Read checkpoints, on any number of ranks, in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lit_gpt.checkpoint.averages import half_lives
from lit_gpt.checkpoint.contents import require_whole
from lit_gpt.checkpoint.export import load_exported
from lit_gpt.checkpoint.find import find_checkpoint
from lit_gpt.checkpoint.layout import Where, read_meta, say
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
from lit_gpt.checkpoint.unlike import unlike
from lit_gpt.checkpoint.untrusted import Shapes, read_tensors, stored_shapes
from lit_gpt.checkpoint.upcycle import dense_places, mixture_of, upcycling
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


def load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer, runtime: Where, fresh: Collection[str]) -> None:
    """Load the optimizer's state in place, but for the roles in `fresh`, whose state stays as it is.

    path: a step folder, which load_weights has checked. Collective. Raises UserError where the state of another role
    has other names or shapes.
    """
    shapes = stored_shapes(path)
    left_out = {f"{OPTIM}{name}" for g in optimizer.param_groups if g["role"] in fresh for name in g["names"]}

    def kept(stored: str) -> bool:
        return stored.startswith(OPTIM) and stored.rpartition(".")[0] not in left_out

    found = {name: shape for name, shape in shapes.items() if kept(name)}
    create_optimizer_state(model, optimizer, found)
    state = flatten(model, optimizer)
    wanted = {name: t for name, t in state.items() if kept(name)}
    _check(path, {name: tuple(t.shape) for name, t in wanted.items()}, found)
    read_tensors(path, wanted, no_dist=runtime.world_size == 1)
    put_back_numbers(model, optimizer, state)


class _Source(NamedTuple):
    """Weights that a model may start from.

    shapes: of all its tensors. fill: reads some of them by name, in place, DTensors too. Collective.
    """

    path: Path
    meta: dict[str, Any]
    shapes: Shapes
    fill: Callable[[Tensors], None]


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
    .safetensors file. Of a dense model's, a model with experts makes these (see upcycle.py), and says so. What else
    differs of the forward passes is said, too.
    Collective. Raises UserError as load_checkpoint does.
    """
    source = _file(path) if path.is_file() else _folder(path, runtime)
    own, up = model_tensors(model), upcycling(source.path, source.meta, model)
    same = {name: tensor.detach() for name, tensor in own.items() if not up.owns(name)}
    _check(source.path, {n: tuple(t.shape) for n, t in same.items()} | up.dense_shapes(), source.shapes)
    source.fill(same)
    for name, mixture in up.mixtures.items():  # one after the other: they are whole on every process
        source.fill(dense := dense_places(name, mixture))
        made = mixture_of(name, mixture, dense)
        _copy(made, {n: own[n] for n in made})
    if up.mixtures and runtime.is_main:
        say(up.said(len(same)))
    elif runtime.is_main and (changed := unlike(source.meta, model)):
        say(
            f"note: the weights of {source.path} were trained in another model (there -> here): {_some(changed)}. "
            "Where that is not meant, give the options of that run."
        )
    return source.meta


def _file(path: Path) -> _Source:
    weights, meta = load_exported(path)
    return _Source(path, meta, {n: (t.shape, t.dtype) for n, t in weights.items()}, partial(_copy, weights))


def _folder(path: Path, runtime: Where) -> _Source:
    folder = find_checkpoint(path, str(path), runtime)
    assert folder is not None, "a path names one, or it is an error"
    stored = {name: s for name, s in stored_shapes(folder).items() if name.startswith(MODEL)}

    def fill(targets: Tensors) -> None:
        read_tensors(folder, {MODEL + n: t for n, t in targets.items()}, no_dist=runtime.world_size == 1)

    return _Source(folder, read_meta(folder), {n.removeprefix(MODEL): s for n, s in stored.items()}, fill)


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
        state = any(n.startswith(OPTIM) for n in wanted)
        hint = "the same model and optimizer, with the same --optimizer_args" if state else "the same model"
        raise UserError("\n".join([f"{path} does not fit this run. It needs {hint}.", *lines]))


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
