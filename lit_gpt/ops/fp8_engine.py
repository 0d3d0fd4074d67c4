"""Products in 8 and 4 bits by NVIDIA's TransformerEngine, with parameters of ours.

Its Linear quantises an input and a weight by the recipe of the autocast around it, multiplies, and keeps what backward
needs (https://docs.nvidia.com/deeplearning/transformer-engine/user-guide/api/pytorch.html). A Linear holds a weight of
its own; here it holds none, on the meta device, and is lent one for each call, so that parameters, optimizers and
checkpoints are those of a run without it. Current and block scaling are for Hopper and later, MXFP8 and NVFP4
(arXiv:2509.25149: rounding of gradients at random, Hadamard transforms, weights in blocks of 16 x 16) for Blackwell.

Written by its documentation and tested with a stand-in for it: no run with TransformerEngine has been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from lit_gpt.ops.backends import missing, optional
from lit_gpt.ops.fp8 import ENGINE, RECIPES

# Recipe -> the function that says whether this GPU can, with why not.
ABLE = {
    "Float8CurrentScaling": "is_fp8_available",
    "Float8BlockScaling": "is_fp8_block_scaling_available",
    "MXFP8BlockScaling": "is_mxfp8_available",
    "NVFP4BlockScaling": "is_nvfp4_available",
}


def library_refusal(name: str) -> str:
    """Why the package of a recipe cannot be used on this machine, or ""; "" for a recipe of our own."""
    recipe = RECIPES[name]
    if recipe.package and (why := missing(recipe.package)):
        return why
    return _engine_refusal(recipe.library) if recipe.package == ENGINE else ""


def _engine_refusal(recipe: str) -> str:
    engine = optional(ENGINE)
    if not torch.cuda.is_available():
        return "TransformerEngine needs an NVIDIA GPU"
    if not hasattr(engine, ABLE[recipe]):
        return f"this TransformerEngine has no {ABLE[recipe]}; install 2.9 or later"
    able, why = getattr(engine, ABLE[recipe])(return_reason=True)
    return "" if able else why.rstrip(".")


class EngineWeights:
    """Products with weights that multiply one input together, as those of ops.fp8.ScaledWeights.

    height, width: of the weights, one under the other.
    """

    def __init__(self, name: str, height: int, width: int):
        self.recipe = getattr(optional("transformer_engine.common.recipe"), RECIPES[name].library)()
        engine: Any = optional(ENGINE)
        self.linear = engine.Linear(width, height, bias=False, params_dtype=torch.bfloat16, device="meta")
        # Its name in versions before 2.9 is deprecated there.
        self.autocast, self.keyword = (
            (engine.autocast, "recipe") if hasattr(engine, "autocast") else (engine.fp8_autocast, "fp8_recipe")
        )

    def quantised(self) -> AbstractContextManager[None]:
        """Within it its modules compute by the recipe."""
        return self.autocast(enabled=True, **{self.keyword: self.recipe})

    def refresh(self, weights: Sequence[Tensor]) -> None:
        """Nothing: it casts weights in every pass."""

    def products(self, x: Tensor, weights: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        """See ScaledWeights."""
        # In the dtype of the activations, which it asks for.
        weight = torch.cat([w.to(x.dtype) for w in weights])
        return list(_multiply(self, x.contiguous(), weight).split(list(widths), dim=-1))


def _with_lent(lent: EngineWeights, x: Tensor, weight: Tensor) -> Tensor:
    # Entered here, and not around the model, so that what backward computes again is by the recipe, too.
    with lent.quantised():
        return functional_call(lent.linear, {"weight": weight}, (x,))


_multiply: Any = torch.compiler.disable(_with_lent)  # its modules are no code for a compiler
