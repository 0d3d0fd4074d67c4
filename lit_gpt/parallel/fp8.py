"""Which maps multiply in 8 bits (--fp8), and when their weights are cast.

They are the linear maps and the experts of blocks that are large enough to gain by it; ops/fp8.py and
ops/experts_fp8.py have the products. The parameters stay as they are, so that roles, optimizers and checkpoints do not
know of it. Only training is in 8 bits: in evaluation mode the same modules multiply in the dtype of the activations,
and validation measures the model as it will be used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from torch import Tensor, nn

from lit_gpt.nn.linear import Linear, groups
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.experts_fp8 import ScaledExperts, refusal
from lit_gpt.ops.fp8 import ENGINE, RECIPES, ScaledWeights, TorchaoWeights
from lit_gpt.ops.fp8_engine import EngineWeights

ROLES = ("matrix", "output")  # routers are too sensitive; the head is no part of a block
# Of either side. A cast moves 4 bytes for every number of an input and of a gradient, in a time in which a square
# matrix of this width saves nothing: at 3.5 TB/s and 1,100 for 700 TFLOP/s the two are equal at 700.
SMALLEST = 256

Weights = ScaledWeights | TorchaoWeights | EngineWeights


def use_fp8(model: nn.Module, recipe: str, kept: bool, kept_experts: Collection[MixtureOfExperts] = ()) -> None:
    """Have the maps of `in_8_bits` multiply by a recipe.

    kept: weights are cast when they have changed, before a pass; else in every pass, where sharded weights come and
    go. kept_experts: the mixtures of which the same holds; it takes two bytes for each weight. Before the blocks are
    compiled.
    """
    chosen, _ = in_8_bits(model, recipe)
    casts: list[tuple[Weights, Sequence[Linear | MixtureOfExperts]]] = []
    for group in chosen.values():
        scaled = _made(recipe, kept, group)
        casts.append((scaled, group))
        for m in group:
            m.scaled = scaled
    for moe in experts_in_8_bits(model, recipe)[0].values():
        moe.scaled = ScaledExperts(recipe, moe in kept_experts)
        casts.append((moe.scaled, [moe]))

    def refresh(model: nn.Module, arguments: Any) -> None:
        if model.training:
            for scaled, modules in casts:
                scaled.refresh([w for m in modules for w in _weights(m)])

    if kept:
        model.register_forward_pre_hook(refresh)


def _made(recipe: str, kept: bool, group: Sequence[Linear]) -> Weights:
    if RECIPES[recipe].package == ENGINE:
        return EngineWeights(recipe, sum(m.weight.shape[0] for m in group), group[0].weight.shape[1])
    return TorchaoWeights(recipe) if RECIPES[recipe].package else ScaledWeights(recipe, kept)


def _weights(module: Linear | MixtureOfExperts) -> list[Tensor]:
    return [module.weight] if isinstance(module, Linear) else [module.up, module.down]


def in_8_bits(model: nn.Module, recipe: str) -> tuple[dict[str, tuple[Linear, ...]], dict[str, str]]:
    """(the groups of maps in blocks that a recipe is for, by the name of the first; the names of others -> why not)."""
    chosen, left = {}, {}
    for name, group in groups(model.blocks).items():  # type: ignore[arg-type]
        if why := _refusal(group, RECIPES[recipe].multiple):
            left[name] = why
        else:
            chosen[name] = group
    return chosen, left


def experts_in_8_bits(model: nn.Module, recipe: str) -> tuple[dict[str, MixtureOfExperts], dict[str, str]]:
    """The same of layers with experts, whose routed experts are meant."""
    chosen, left = {}, {}
    for name, moe in cast(nn.ModuleList, model.blocks).named_modules():
        if isinstance(moe, MixtureOfExperts):
            (count, height, width), inner = moe.up.shape, moe.down.shape[-1]
            multiple = RECIPES[recipe].multiple
            if why := refusal(recipe, count) or _size([height], width, multiple) or _size([width], inner, multiple):
                left[f"{name}.experts"] = why
            else:
                chosen[f"{name}.experts"] = moe
    return chosen, left


def _refusal(group: tuple[Linear, ...], multiple: int) -> str:
    if any(getattr(m.weight, "role", None) not in ROLES for m in group):
        return "a router"
    return _size([m.weight.shape[0] for m in group], group[0].weight.shape[1], multiple)


def _size(heights: list[int], width: int, multiple: int) -> str:
    """Why not matrices of these heights, one under the other, or ""."""
    size = f"{sum(heights)} x {width}" + (f", with {len(heights) - 1} more," if len(heights) > 1 else "")
    if min(sum(heights), width) < SMALLEST:
        return f"{size} is small"
    if any(size % multiple for size in (*heights, width)):
        return f"{size} is no multiple of {multiple}"
    return ""


def fp8_note(model: nn.Module, recipe: str) -> str:
    """A sentence: what a model has in 8 bits, and which maps not and why, of blocks that are alike once."""
    (chosen, left), (mixtures, others) = in_8_bits(model, recipe), experts_in_8_bits(model, recipe)
    maps = sum(len(group) for group in chosen.values())
    total = sum(isinstance(m, Linear) for m in model.blocks.modules())  # type: ignore[union-attr]
    stay = {f"{name.partition('.')[2]} ({why})": None for name, why in (left | others).items()}
    experts = f" and the experts of {len(mixtures)} layers" if mixtures else ""
    rest = f"; not {', '.join(stay)}" if stay else ""
    bits = 4 if recipe == "te_nvfp4" else 8
    return f"--fp8 {recipe}: {maps} of {total} linear maps of the blocks{experts} train in {bits} bits{rest}"
