"""Token mixers: one file each. The file name is LayerSpec.mixer.

A file exposes `build(config, layer_index, multipliers) -> Mixer`; see Mixer for what the
module must answer. Its parameters carry roles (lit_gpt.roles).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.context import Context
from lit_gpt.registry import Registry
from lit_gpt.scaling.base import Multipliers

MIXERS = Registry("lit_gpt.nn.mixers", "mixer")

Shared = tuple[Tensor, ...]  # what a layer lends to later ones: keys and values, or a memory


class Mixer(Protocol):
    """A causal map over time from (B, T, n) to (B, T, n)."""

    def __call__(
        self, x_BTD: Tensor, context: Context, shared: Shared | None, cache: Any
    ) -> tuple[Tensor, Shared | None]:
        """The output, and what later layers read (None when none does).

        shared: what layer LayerSpec.shares lent. cache: from new_cache, updated in place.
        """
        ...

    def flops(self, context_length: int) -> float:
        """Forward matmul FLOPs per token, averaged over the positions of a sequence."""
        ...

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> Any:
        """Empty state for cached decoding."""
        ...


def build_mixer(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> nn.Module:
    """The mixer of one layer. Raises UserError when there is none of that name."""
    return MIXERS.load(config.layers[layer_index].mixer).build(config, layer_index, multipliers)
