"""Whether the operations of a model have a backend on a device: asked before training, not at the first step."""

from __future__ import annotations

import torch

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.moe import hidden_width
from lit_gpt.ops import grouped_gemm
from lit_gpt.ops.attention import describe, pick

# The mixers that call ops/attention, whose backend --attention chooses.
SOFTMAX_ATTENTION = ("attention", "cross_attention", "differential_attention", "differential_cross_attention")


def check_attention(model: ModelConfig, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError when a layer cannot use this --attention."""
    length, varlen = model.block_size, model.varlen
    for window in {layer.window for layer in model.layers if layer.mixer in SOFTMAX_ATTENTION}:
        pick(describe(device, length, length, window, varlen, model.attn_sink, dtype, varlen), backend)


def check_experts(model: ModelConfig, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError when a layer's experts cannot use this --expert_backend."""
    for kind in {layer.ffn for layer in model.layers if layer.experts and layer.ffn}:
        sizes = (model.n_embd, hidden_width(model, kind))
        grouped_gemm.pick(grouped_gemm.Request(device.type, dtype, sizes), backend)
