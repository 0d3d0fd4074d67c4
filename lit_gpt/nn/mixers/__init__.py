"""Token mixers: one file each. The file name is LayerSpec.mixer.

A file exposes `build(config, layer_index, multipliers) -> Mixer`; see Mixer for what the
module must answer. Its parameters carry roles (lit_gpt.roles). A mixer that can share a memory
with Gated Memory Units also has `memory(config, layer_index) -> MemoryForm`.

READS_HEADS = False says that nothing it computes depends on the heads and the positions that ModelConfig describes, but
for shapes. Without it they count, as the fields of Options do that have no mark (config/readers.py).
SOFTMAX_ATTENTION = True says that it calls ops/attention, whose backend --attention chooses, and READS_KEYS = True that
it reads the keys and values of the layer that it shares.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lit_gpt.config.arguments import arguments_of, check
from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.registry import Registry
from lit_gpt.scaling.base import Multipliers

MIXERS = Registry("lit_gpt.nn.mixers", "mixer", "build(config, layer_index, multipliers)")
O = TypeVar("O")  # noqa: E741
# What most options of mixers may be; see config/bounds.py.
Count = Annotated[int, Bounds(1)]
Positive = Annotated[float, Bounds(0, without="low")]


class _ConvWidth:
    """One tap is a gain per channel, and no convolution."""

    words = "of at least 2, or 0 for no convolution"

    def allows(self, width: int) -> bool:
        """See words."""
        return width == 0 or width >= 2


ConvWidth = Annotated[int, _ConvWidth()]


class SharedState(NamedTuple):
    """What later layers read of an earlier one.

    kv: keys and values (B, K, G, D), as attention reads them, of every position that a layer reading them may see.
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


def reads_heads(name: str) -> bool:
    """Whether a mixer reads the model's heads and positions. Raises UserError when there is none of that name."""
    return getattr(MIXERS.load(name), "READS_HEADS", True)


def build_mixer(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> nn.Module:
    """The mixer of one layer. Raises UserError when there is none of that name, and for options that it cannot have."""
    name = config.layers[layer_index].mixer
    try:
        entry = MIXERS.load(name)
    except UserError as error:
        raise UserError(f"{error} If it is your own, name its file in --plugins, too.") from None
    if not hasattr(entry, "Options"):
        check(f"mixer {name}", "--mixer_options", config.mixer_options.get(name, {}), {})
    mixer: nn.Module = entry.build(config, layer_index, multipliers)
    lacking = [method for method in ("forward", "flops", "new_cache") if not hasattr(mixer, method)]
    if not isinstance(mixer, nn.Module) or lacking:  # a plugin's mistake
        what = f"without {' and '.join(lacking)}" * isinstance(mixer, nn.Module)
        raise UserError(
            f"build of the mixer {name!r} returned {type(mixer).__name__} {what}".rstrip()
            + "; return a torch.nn.Module with forward, flops and new_cache (docs/adding.md)."
        )
    if config.layers[layer_index].value_embedding and getattr(mixer, "value_embedding", None) is None:
        raise UserError(
            f"Layer {layer_index} has the mixer {name}, which has no values of its own for value embeddings. Give "
            "value_embedding to layers with attention, or --value_embeddings false."
        )
    return mixer


def mixer_options(config: ModelConfig, layer_index: int, kind: type[O]) -> O:
    """The options of a layer's mixer, a frozen dataclass of its file: its defaults, and what the model changes.

    Raises UserError for an option that the mixer does not have, and for a value that its type does not allow.
    """
    name = config.layers[layer_index].mixer
    given = config.mixer_options.get(name, {})
    check(f"mixer {name}", "--mixer_options", given, arguments_of(kind))
    return kind(**given)
