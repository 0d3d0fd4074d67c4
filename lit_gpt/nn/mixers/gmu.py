"""Gated Memory Unit (arXiv:2507.06607): gates what an earlier layer computed, token by token.

    y = out(memory * silu(in(x)))             memories of attention, Mamba, feed-forward networks
    y = out(RMSNorm(memory * silu(in(x))))    memories that their own layer normalises after its gate

LayerSpec.shares names the layer whose memory this is; it decides width and form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, gated, last_linear, lies_along_time
from lit_gpt.nn.mixers import MIXERS, MemoryForm, SharedState
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False


class GatedMemoryUnit(nn.Module):
    """No mixing of positions: there is nothing to cache."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        n, (width, normed) = config.n_embd, memory_form(config, layer_index)
        self.gate = Linear(n, width, bias=config.mlp_bias)
        self.norm = RMSNorm(width, config.norm_eps) if normed else None
        self.out = last_linear(config, width, config.mlp_bias)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None, cache: None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer. Shares nothing."""
        assert shared is not None and shared.memory is not None, "the layer that a memory unit reads shares nothing"
        # The gate in the layout of the memory, which Mamba leaves as its scan writes it.
        gated_BTM = gated(shared.memory, self.gate(x_BTD, along_time=lies_along_time(shared.memory)))
        if self.norm is not None:
            gated_BTM = self.norm(gated_BTM, gated_BTM.dtype)
        return self.out(gated_BTM), None

    def flops(self, context_length: int) -> float:
        """Two projections; independent of the context."""
        return self.gate.flops() + self.out.flops()

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> None:
        """A memory unit remembers nothing."""


def memory_form(config: ModelConfig, layer_index: int) -> MemoryForm:
    """Width and form of the memory that a layer reads."""
    source = config.layers[layer_index].shares
    assert source is not None, f"layer {layer_index} is a memory unit and reads no layer"
    spec = config.layers[source]
    if spec.memory == "ffn":
        return MemoryForm(config.intermediate_size, normed=False)
    assert spec.memory == "mixer", f"layer {source} shares no memory"
    return MIXERS.load(spec.mixer).memory(config, source)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> GatedMemoryUnit:
    """The registry's entry point."""
    return GatedMemoryUnit(config, layer_index)
