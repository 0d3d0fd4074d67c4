"""Whether the operations of a model have a backend on a device: asked before training, not at the first step."""

from __future__ import annotations

import torch

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import MIXERS
from lit_gpt.nn.moe import hidden_width
from lit_gpt.ops import grouped_gemm
from lit_gpt.ops.attention import describe, pick
from lit_gpt.ops.fp8 import RECIPES
from lit_gpt.ops.fp8_engine import library_refusal


def check_attention(model: ModelConfig, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError when a layer cannot use this --attention."""
    length, varlen = model.block_size, model.varlen
    asking = (layer for layer in model.layers if getattr(MIXERS.load(layer.mixer), "SOFTMAX_ATTENTION", False))
    for window in {layer.window for layer in asking}:
        asked = device, length, length, window, varlen, model.attn_sink, dtype, varlen, model.head_dim
        pick(describe(*asked), backend)


def check_experts(model: ModelConfig, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError when a layer's experts cannot use this --expert_backend."""
    for kind in {layer.ffn for layer in model.layers if layer.experts and layer.ffn}:
        sizes = (model.n_embd, hidden_width(model, kind))
        grouped_gemm.pick(grouped_gemm.Request(device.type, dtype, sizes), backend)


def check_fp8(recipe: str, device: torch.device, tokens: int) -> None:
    """Raise UserError where this machine cannot train by a recipe of --fp8. tokens: of a micro-batch."""
    if tokens % (multiple := RECIPES[recipe].multiple):
        raise UserError(
            f"A micro-batch has {tokens:,} tokens (--micro_bsz times --ctx_len), and --fp8_recipe {recipe} needs a "
            f"multiple of {multiple}. Change one of the two."
        )
    if reason := library_refusal(recipe):
        instead = " with --fp8, and not --fp4" if recipe == "te_nvfp4" else ""
        raise UserError(f"--fp8_recipe {recipe} cannot be used here: {reason}. Use --fp8_recipe tensorwise{instead}.")
    if device.type != "cuda" or recipe == "mxfp8_emulated":
        return
    if torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            f"--fp8_recipe {recipe} needs a GPU that multiplies in 8 bits (compute capability 8.9), and this is a "
            f"{torch.cuda.get_device_name(device)}. Drop --fp8; --fp8_recipe mxfp8_emulated runs here, no faster."
        )
