"""RoPE and YaRN against transformers, and RoPE against complex rotation."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_gpt.architectures import build
from lit_gpt.errors import UserError
from lit_gpt.nn import rotary


def config(**fields):
    return build("transformer", 4, aspect_ratio=64).replace(**fields)


def test_rotation_is_multiplication_by_a_unit_complex_number():
    c = config()
    x = torch.randn(2, 7, 3, 64, dtype=torch.float64)
    cos, sin = rotary.tables(c, torch.arange(5, 12))
    y = rotary.rotate(x, cos.double(), sin.double())
    angles = torch.arange(5, 12)[:, None] * 10_000.0 ** (-torch.arange(32) / 32)
    turned = torch.complex(x[..., :32], x[..., 32:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


def test_each_row_may_have_positions_of_its_own():
    """As for documents that start at 0: (B, T) positions give (B, T, R/2) tables."""
    c = config()
    x = torch.randn(2, 5, 3, 64)
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 1, 2]])
    y = rotary.rotate(x, *rotary.tables(c, positions))
    rows = [rotary.rotate(row[None], *rotary.tables(c, p))[0] for row, p in zip(x, positions)]
    assert torch.equal(y, torch.stack(rows))


def test_a_layer_may_have_a_base_of_its_own():
    c, positions = config(), torch.arange(5)
    for ours, expected in zip(rotary.tables(c, positions, 500.0), rotary.tables(c.replace(rope_base=500.0), positions)):
        assert torch.equal(ours, expected)
    with_yarn = config(yarn_scale=2.0, rope_base=640_000.0)
    with pytest.raises(UserError, match="rope_base=20"):
        rotary.tables(with_yarn, positions, 20.0)


def test_part_of_a_head_can_stay_unrotated():
    c = config(rotary_fraction=0.5)
    x = torch.randn(1, 4, 1, 64)
    y = rotary.rotate(x, *rotary.tables(c, torch.arange(4)))
    assert torch.equal(y[..., 32:], x[..., 32:])
    assert not torch.allclose(y[:, 1:, :, :32], x[:, 1:, :, :32])


@pytest.mark.parametrize("base", [10_000.0, 640_000.0])
@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_yarn_is_the_one_of_transformers(scale, base):
    """Without truncation of the ramp's ends, the definitions agree."""
    c = config(yarn_scale=scale, rope_base=base, yarn_context=4096)
    rope = {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": scale,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    }
    theirs = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=rope)
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    torch.testing.assert_close(rotary.inverse_frequencies(c), frequencies, rtol=1e-5, atol=0)
    assert math.isclose(rotary.attention_factor(c), factor)


def test_yarn_that_does_not_fit_is_explained():
    with pytest.raises(UserError, match="yarn_context=128"):
        rotary.inverse_frequencies(config(yarn_scale=2.0, yarn_context=128))


def test_tables_are_fp32_whatever_the_default():
    assert rotary.tables(config(), torch.arange(3))[0].dtype == torch.float32
