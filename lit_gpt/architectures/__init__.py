"""Model families: one file each, `build(depth, shape) -> ModelConfig`, or one row of builders/table.py.

The name of the file or row is the CLI value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.architectures.builders.table import TABLE
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.config.names import read_model_name
from lit_gpt.errors import UserError
from lit_gpt.registry import Registry

FAMILIES = Registry("lit_gpt.architectures", "model family", "build(depth, shape)", TABLE)
DEPTHS = (8, 12, 16, 20, 24)  # the depths of the published ladders; any depth that fits is allowed
NEAR = 9  # an error's suggestions are this near; every layout has a period of 4 or less


def build(
    family: str,
    depth: int,
    *,
    aspect_ratio: int | None = None,
    block_size: int | None = None,
    window: int | None = None,
    experts: Experts | None = None,
) -> ModelConfig:
    """The family's ModelConfig at a depth; see Shape for the options.

    Raises UserError for an unknown family or a depth its layout does not allow, with the nearest that it does.
    """
    experts = experts or experts_of(family)
    at, shape = FAMILIES.load(family).build, Shape(family, aspect_ratio, block_size, window, experts)
    try:
        model = at(depth, shape)
    except UserError as error:
        message = str(error)
        if depths := _near(depth, lambda d: at(d, shape)):
            message += f"\nGive --depth {depths} (--base_hps.d0 if this is the base model)."
        if aspect_ratio and (ratios := _near(aspect_ratio, lambda ar: at(depth, shape._replace(aspect_ratio=ar)))):
            message += f"\nGive --ar {ratios} (--base_hps.ar0 if this is the base model)."
        raise UserError(message) from None
    if not isinstance(model, ModelConfig):  # a plugin's mistake
        raise UserError(f"build of the family {family!r} returned {type(model).__name__}; return a ModelConfig.")
    return model


def from_name(name: str, **changes: Any) -> ModelConfig:
    """The model of a whole name, such as "sambay_d16" or "transformer_gqa4_moe_s8_k4_d16".

    It is what Config.from_name is in ArchScale and litgpt. changes: fields of ModelConfig with other values.
    Raises UserError for a name without a depth, and as `build` does.
    """
    model = read_model_name(name)
    if model.depth is None:
        raise UserError(f"The name {name!r} has no depth. Write it behind the family, such as {model.family}_d16.")
    said = {key: value for key in ("sparsity", "top_k") if (value := getattr(model, key)) is not None}
    experts = experts_of(model.family)
    return build(model.family, model.depth, experts=experts and replace(experts, **said)).replace(**changes)


def _near(given: int, at: Callable[[int], ModelConfig]) -> str:
    """The values next to the one that was given with which the family can be built: "8 or 12"; "" without any."""

    def builds(value: int) -> bool:
        try:
            at(value)
        except UserError:
            return False
        return True

    ways = range(given - 1, max(given - NEAR, 0), -1), range(given + 1, given + NEAR)
    found = (next(filter(builds, way), None) for way in ways)
    return " or ".join(str(value) for value in found if value is not None)


def experts_of(family: str) -> Experts | None:
    """The experts of a family whose feed-forward networks are mixtures, where no flag says another number of them.

    None for all other families. Raises UserError for an unknown one.
    """
    said = getattr(FAMILIES.load(family), "EXPERTS", False)
    return said if isinstance(said, Experts) else Experts() if said else None
