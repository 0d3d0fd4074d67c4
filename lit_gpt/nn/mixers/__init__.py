"""Token mixers: one file each. The file name is LayerSpec.mixer.

A file exposes `build(config, layer_index, multipliers) -> Mixer`; see Mixer for what the
module must answer. Its parameters carry roles (lit_gpt.roles). A mixer that can share a memory
with Gated Memory Units also has `memory(config, layer_index) -> MemoryForm`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.nn.context import Context
from lit_gpt.registry import Registry
from lit_gpt.scaling.base import Multipliers

MIXERS = Registry("lit_gpt.nn.mixers", "mixer")
O = TypeVar("O")  # noqa: E741
KINDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class SharedState(NamedTuple):
    """What later layers read of an earlier one.

    kv: keys and values (B, K, G, D), as attention reads them, of every position so far.
    memory: (B, T, width), of this call's positions, for Gated Memory Units.
    """

    kv: tuple[Tensor, Tensor] | None = None
    memory: Tensor | None = None


class MemoryForm(NamedTuple):
    """The memory a mixer shares: its width, and whether the unit that reads it normalises."""

    width: int
    normed: bool


class Mixer(Protocol):
    """A causal map over time from (B, T, n) to (B, T, n).

    attends: it reads the context's rope and mask, which are made for layers that do; absent means no.
    """

    def __call__(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None, cache: Any
    ) -> tuple[Tensor, SharedState | None]:
        """The output, and what later layers read (None when none does).

        shared: what layer LayerSpec.shares gave. cache: from new_cache, updated in place.
        """
        ...

    def flops(self, context_length: int) -> float:
        """Forward matmul FLOPs per token, averaged over the positions of a sequence."""
        ...

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> Any:
        """Empty state for cached decoding. None for a mixer that needs nothing of earlier positions but what other
        layers share, so that a prefill may ask it for the last position alone.
        """
        ...


def build_mixer(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> nn.Module:
    """The mixer of one layer. Raises UserError when there is none of that name, and for options of one without any."""
    name = config.layers[layer_index].mixer
    entry = MIXERS.load(name)
    if (given := config.mixer_options.get(name)) and not hasattr(entry, "Options"):
        raise UserError(
            f"The mixer {name} has no options, but {', '.join(given)} was given (--mixer_options). Drop it."
        )
    return entry.build(config, layer_index, multipliers)


def mixer_options(config: ModelConfig, name: str, kind: type[O]) -> O:
    """The mixer's options, a frozen dataclass of its file: its defaults, and what the model changes.

    Raises UserError for an option that the mixer does not have, and for a value of another type
    than the field's (numbers, true and false, null) or that its `limited` does not allow.
    """
    given = config.mixer_options.get(name, {})
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in known:
            raise UserError(
                f"The mixer {name} has no option {key!r} (--mixer_options).{did_you_mean(key, known)} "
                f"It has {', '.join(known)}."
            )
        types, limit = get_args(hints[key]) or (hints[key],), known[key].metadata
        if set(types) <= set(KINDS) and not (_is_one_of(types, value) and _fits(limit, value)):
            kinds = [f"{KINDS[t]} {limit['words']}" if limit and t in (int, float) else KINDS[t] for t in types]
            raise UserError(
                f"The option {key} of the mixer {name} is {json.dumps(value)}; "
                f"it must be {' or '.join(kinds)} (--mixer_options)."
            )
    return kind(**given)


def _is_one_of(types: tuple[type, ...], value: Any) -> bool:
    """Whether a JSON value has one of the types: true is no number, 2 is a float too, infinity is nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) in types or (type(value) is int and float in types)


def _fits(limit: Mapping[str, Any], value: Any) -> bool:
    return value is None or not limit or limit["fits"](value)


def limited(default: Any, words: str, fits: Callable[[Any], bool]) -> Any:
    """A number in a mixer's options: its default, and which others are allowed, in words ("above 0") and as a test.

    None, where the field's type has it, is allowed always.
    """
    return dataclasses.field(default=default, metadata={"words": words, "fits": fits})


def at_least(minimum: int, default: Any) -> Any:
    """An option that is not below `minimum`; see limited."""
    return limited(default, f"of at least {minimum}", lambda value: value >= minimum)


def positive(default: Any) -> Any:
    """An option above zero; see limited."""
    return limited(default, "above 0", lambda value: value > 0)


def conv_width(default: int) -> Any:
    """Width of a short convolution that can be left out: one tap is a gain per channel, and no convolution."""
    return limited(default, "of at least 2, or 0 for no convolution", lambda width: width == 0 or width >= 2)
