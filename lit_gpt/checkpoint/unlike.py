"""Whether weights start in the model that they were trained in: shapes that fit say little of what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_gpt.checkpoint.forward_pass import forward_pass, model_of
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.scaling.plan import difference


def unlike(meta: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Lines "what: there -> here" of the forward pass that a checkpoint's meta describes and that of a model.

    [] where the meta does not say, or says what this version does not know.
    """
    if not isinstance(model, GPT) or "model" not in meta:
        return []
    try:
        there = forward_pass(*model_of(meta))
    except (TypeError, KeyError, ValueError, AttributeError, UserError):
        return []
    found = difference(there, forward_pass(model.config, model.multipliers))
    return [line.removeprefix("model.") for line in found]
