"""What the short convolution of attention reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_layers import layer_config, mixer_of
from torch import Tensor

from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import attention


@pytest.mark.parametrize(("rows", "bias", "joined"), [(40, False, False), (40, True, True), (3, False, True)])
def test_it_reads_the_product_whole(rows, bias, joined, monkeypatch):
    """Where it is one product, as in training, which splitting and joining would copy."""
    given: list[Tensor] = []

    def convolve(x: Tensor, *others: Any, **more: Any) -> Any:
        given.append(x)
        return run(x, *others, **more)

    run = attention.causal_conv_pieces
    monkeypatch.setattr(attention, "causal_conv_pieces", convolve)
    layer: Any = mixer_of(layer_config("attention", attn_conv=True, qkv_bias=bias), 0)
    x = torch.randn(1, rows, layer.q.weight.shape[1], dtype=torch.float64)
    layer(x, Context())
    maps = layer.q, layer.k, layer.v
    torch.testing.assert_close(given[0], torch.cat([m(x) for m in maps], dim=-1))
    assert (type(given[0].grad_fn).__name__ == "CatBackward0") is joined
